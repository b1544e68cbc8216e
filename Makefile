# Set up and run the course; `make help` lists the commands.
# Written for GNU make 3.81, the one that macOS still ships.

PYTHON ?= python3
TORCH ?=

venv := .venv
docs_venv := .venv-docs
python := $(venv)/bin/python
pytest := OMP_NUM_THREADS=1 TQDM_DISABLE=1 $(python) -m pytest -n 2 --dist loadfile --no-loadscope-reorder
pip_install := -m pip install --disable-pip-version-check -c constraints.txt
ifeq ($(TORCH),cpu)
# Its builds are called 2.x.y+cpu, which pip takes for newer than the plain 2.x.y.
torch_index := --extra-index-url https://download.pytorch.org/whl/cpu
endif

.DEFAULT_GOAL := help
.PHONY: help lab test test-quick test-browser notebooks claims bench site links

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s%s\n", $$1, $$2 }' Makefile
	@echo
	@echo "The first of them makes $(venv). These choose how (to choose anew, remove it):"
	@echo "  PYTHON=python3.12   the interpreter, 3.10 or newer"
	@echo "  TORCH=cpu           PyTorch for the CPU alone, a far smaller download on Linux"

lab: $(venv)/lab.stamp ## open your copy of the lessons, in work/, in JupyterLab
	$(python) -m course_lib lab

test: $(venv)/test.stamp ## check style, code and every number in the notebooks
	$(venv)/bin/ruff check
	$(venv)/bin/ruff format --check
	$(venv)/bin/codespell
	$(venv)/bin/lint-imports --no-logo
	$(pytest) -m 'not browser'

test-quick: $(venv)/test.stamp ## what takes under a minute of it, while you write
	$(venv)/bin/ruff check
	$(pytest) --quick tests

test-browser: $(venv)/test.stamp ## work through every lesson in Chromium
	$(pytest) -m browser --dist load tests/test_browser.py

notebooks: $(venv)/lab.stamp ## run every notebook and store its outputs
	$(python) -m course_lib notebooks
	$(python) docs/make_teach.py

claims: $(venv)/test.stamp ## measure what the lessons say about training
	$(python) -m benchmarks.claims

bench: $(venv)/test.stamp ## measure each claim of speed, into docs/results
	$(python) -m course_lib bench

site: $(docs_venv)/site.stamp ## build the lessons as web pages, into build/site
	OMP_NUM_THREADS=1 $(docs_venv)/bin/python -m course_site
	@echo "To see it: $(docs_venv)/bin/python -m http.server --directory build/site"

links: $(docs_venv)/site.stamp ## check the pages' links to other sites
	$(docs_venv)/bin/python -m course_site --external

# A stamp is touched only when its install has ended, so that one cut short goes on.
# JupyterLab without announcements neither asks about news nor looks for updates.
$(venv)/lab.stamp: $(venv)/made-in pyproject.toml constraints.txt
	$(python) $(pip_install) $(torch_index) -e '.[lab]'
	$(no_announcements)
	@touch $@

$(venv)/test.stamp: $(venv)/made-in pyproject.toml constraints.txt
	$(python) $(pip_install) $(torch_index) -e '.[test,bench]'
	$(no_announcements)
	@touch $(venv)/lab.stamp $@

no_announcements = $(venv)/bin/jupyter-labextension disable --level=sys_prefix \
  @jupyterlab/apputils-extension:announcements

# With PyTorch: the lessons run, to draw what their widgets show.
$(docs_venv)/site.stamp: $(docs_venv)/made-in pyproject.toml constraints.txt
	$(docs_venv)/bin/python $(pip_install) $(torch_index) -e '.[lab,docs]'
	@touch $@

$(venv)/made-in $(docs_venv)/made-in:
	@$(PYTHON) -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' \
	  2>/dev/null || { echo "Found for PYTHON=$(PYTHON): $$($(PYTHON) -V 2>&1). Needed:" \
	  "3.10 or newer with venv and ensurepip (Debian: apt install python3-venv)." \
	  "Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(@D)
	@echo "$(CURDIR)" > $@

# A virtual environment holds absolute paths. One that has moved with its checkout, or
# whose interpreter has gone, does not answer with this folder's name and is made anew.
answer = $(shell $(1)/bin/python -c pass 2>&1; cat $(1)/made-in 2>&1)
.PHONY: $(foreach v,$(venv) $(docs_venv),\
  $(if $(filter-out x$(CURDIR),x$(call answer,$(v))),$(v)/made-in))
