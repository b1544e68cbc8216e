"""The site's configuration. Sphinx reads what `make site` writes to build/."""

from course_site import ROOT, STATIC, repository

project = "Deep learning's odd corners"
author = "The course authors"
copyright = "2026, The course authors. Text: CC BY 4.0, code: MIT"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "course_site.extension",
]

# The pages show the stored outputs, which `make test` has compared.
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_heading_slug_func = "course_site.results.slug"

html_theme = "sphinx_book_theme"
html_title = project
html_math_renderer = "mathml"
html_favicon = "_static/favicon.svg"
html_static_path = ["_static", str(STATIC)]
html_css_files = ["site.css"]
html_js_files = ["explorer.js", "valley.js", "search.js"]
html_search_scorer = str(ROOT / "docs" / "_static" / "scorer.js")
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "use_download_button": False,  # each lesson has its own, for the notebook
    "show_prev_next": True,
    "show_toc_level": 2,
    "home_page_in_toc": False,
}
if found := repository.find():
    html_theme_options |= {
        "repository_url": found.address,
        "repository_branch": found.branch,
        "use_repository_button": True,
        "use_issues_button": True,
    }

# The library, from its docstrings.
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
# Names in docstrings are links where this site has a place for them; types of other
# libraries have theirs elsewhere, and the build asks no other site.
nitpick_ignore_regex = [("py:obj", ".*"), ("py:class", ".*"), ("py:exc", "LostProcess")]

linkcheck_timeout = 20
linkcheck_retries = 3
linkcheck_workers = 2
linkcheck_anchors_ignore_for_url = [r"https://github\.com/.*"]  # drawn by scripts
linkcheck_allowed_redirects = {r".*": r".*"}
linkcheck_ignore = [
    r"https://stackoverflow\.com/.*",  # answer robots with 403
    r"https://doi\.org/.*",
    r"https?://localhost.*",
]
