"""Every lesson in a real JupyterLab: all cells run, and every widget moves its picture.

Skips, saying why, where Playwright or Chromium is missing.
"""

import json
import operator
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from course_lib.lessons import working_copy

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the browser test needs Playwright (pip)"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
# Without windowing all cells are in the page; nothing is fetched from the network.
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}
ANSWER = "my_answer = 2026"
ACTIVE = ".jp-NotebookPanel:not(.lm-mod-hidden)"
CONTROLS = ".widget-slider [role=slider], .widget-checkbox input"
VALUE = "c => c.role === 'slider' ? c.getAttribute('aria-valuenow') : c.checked"
# What a screen reader says: the label of the slider, or that around the check box.
NAME = "c => c.getAttribute('aria-label') || c.closest('label')?.textContent || ''"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
FIRST, *OTHERS = NOTEBOOKS  # the first one is among the tests of every run
LESSONS = [FIRST, *(pytest.param(each, marks=pytest.mark.browser) for each in OTHERS)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Serve a learner's copy of the lessons; give the address, the token, the copy."""
    work = tmp_path_factory.mktemp("lab")
    (work / "settings").mkdir()
    (work / "settings" / "overrides.json").write_text(json.dumps(SETTINGS))
    working_copy.update(work=work / "work")
    server, base, token = start_lab(work)
    yield base, token, work / "work"
    os.killpg(server.pid, signal.SIGTERM)
    server.wait(20)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.mark.parametrize("notebook", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_runs_and_its_widgets_move(notebook, lab, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 1100})
    page.set_default_timeout(60_000)
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    open_notebook(page, lab, notebook)
    run_all(page)
    assert unexpected_errors(page, notebook) == []
    cells = cells_with_controls(page)
    assert len(cells) >= (1 if notebook.stem.startswith("00") else 2)
    for cell in cells:
        play(page, cell)
    for least, greatest in (ends for cell in cells for ends in sweep(page, cell)):
        assert least["src"] != greatest["src"]
        assert least["alt"] != greatest["alt"]
    assert pictures_without_words(page) == 0
    work_through_the_quiz(page)
    before = notebook.read_bytes()
    answer_and_save(page)
    saved = (lab[2] / notebook.name).read_text(encoding="utf-8")
    assert ANSWER in saved
    assert '"execution_count": 1' in saved
    assert notebook.read_bytes() == before  # what `make test` reads
    assert problems == []
    if folder := os.environ.get("COURSE_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{notebook.stem}.png")
    page.close()


def start_lab(work):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token, base = secrets.token_hex(16), f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": work / "work",
        "IdentityProvider.token": token,
        "LabApp.app_settings_dir": work / "settings",
        "LabApp.news_url": None,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.expose_app_in_browser": True,
        "KernelManager.transport_encryption": "auto",
    }
    command += [f"--{name}={value}" for name, value in options.items()]
    folders = {
        "JUPYTERLAB_SETTINGS_DIR": str(work / "user-settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(work / "workspaces"),
    }
    with (work / "lab.log").open("w") as log:
        server = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=os.environ | folders,
            start_new_session=True,
        )
    wait_for(f"{base}/api/status?token={token}", server, work / "lab.log")
    return server, base, token


def wait_for(address, server, log, seconds=90):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(address, timeout=2).read()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not answer in {seconds} s:\n{log.read_text()[-2000:]}")


def open_notebook(page, lab, notebook):
    base, token, _ = lab
    workspace = f"{base}/lab/workspaces/{notebook.stem}"
    page.goto(f"{workspace}/tree/{notebook.name}?reset&token={token}")
    page.locator(f"{ACTIVE} .jp-Notebook").wait_for()
    # The kernel's indicator says idle before there is a session; these words don't.
    status = page.locator("#jp-main-statusbar")
    playwright.expect(status).to_contain_text(re.compile(r"\| Idle"), timeout=90_000)


def run_all(page):
    page.evaluate("() => jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(
        """panel => [...document.querySelectorAll(panel + ' .jp-CodeCell')].every(
             cell => /\\[\\d+\\]/.test(
               cell.querySelector('.jp-InputPrompt').innerText))""",
        arg=ACTIVE,
        timeout=120_000,
    )


def unexpected_errors(page, notebook):
    """Return the source of each cell that failed without being tagged for it."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    failed = page.evaluate(
        """panel => [...document.querySelectorAll(panel + ' .jp-CodeCell')].map(
             cell => !!cell.querySelector(
               "[data-mime-type='application/vnd.jupyter.error']"))""",
        ACTIVE,
    )
    assert len(failed) == len(code)
    tagged = ["raises-exception" in cell["metadata"].get("tags", []) for cell in code]
    pairs = zip(code, failed, tagged, strict=True)
    return ["".join(cell["source"]) for cell, bad, tag in pairs if bad and not tag]


def answer_and_save(page):
    """Type an answer into the first exercise."""
    stubs = page.locator(f"{ACTIVE} .jp-CodeCell").filter(
        has_text=re.compile(r"\.\.\.")
    )
    stubs.first.locator(".cm-content").click()
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.type(ANSWER)
    page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")


def cells_with_controls(page):
    cells = page.locator(f"{ACTIVE} .jp-CodeCell")
    return cells.filter(has=page.locator(CONTROLS)).all()


def sweep(page, cell):
    """Move each control to its ends and back; yield its pictures at both.

    All with real keys, which must reach the control and leave the focus there.
    """
    for control in cell.locator(CONTROLS).all():
        assert control.evaluate(NAME).strip(), "a control without a name"
        keys = (
            "Home End" if control.get_attribute("role") == "slider" else "Space Space"
        )
        value, picture = control.evaluate(VALUE), describe(cell)
        control.focus()
        yield [press(page, cell, control, key) for key in keys.split()]
        while control.evaluate(VALUE) != value:
            page.keyboard.press("ArrowLeft")
        wait_for_words(cell, operator.eq, picture["alt"])
        assert control.evaluate("c => c === document.activeElement")


def work_through_the_quiz(page):
    """Reach each choice of each question by keys, read its reply, end at the right one.

    The last right one says that all are.
    """
    groups = page.locator(f"{ACTIVE} .course-quiz").get_by_role("radiogroup").all()
    assert len(groups) >= 3
    for group in groups:
        assert group.get_attribute("aria-label").strip()
        radios = group.get_by_role("radio").all()
        assert not any(radio.is_checked() for radio in radios)
        radios[0].focus()
        keys = ["Space", *["ArrowDown"] * (len(radios) - 1), "ArrowUp", "Home", "End"]
        places = [*range(len(radios)), len(radios) - 2, 0, len(radios) - 1]
        replies = {}
        for key, place in zip(keys, places, strict=True):
            page.keyboard.press(key)
            playwright.expect(radios[place]).to_be_checked()
            playwright.expect(radios[place]).to_be_focused()
            replies[place] = wait_for_reply(group, replies.get(place), replies.values())
        assert len(set(replies.values())) == len(radios)
        (right,) = (n for n, words in replies.items() if words.startswith("✓ Right."))
        radios[right].focus()
        page.keyboard.press("Space")
        playwright.expect(radios[right]).to_be_checked()
        last = wait_for_reply(group, None, set(replies.values()) - {replies[right]})
        assert last.startswith("✓ Right.")
    assert last.endswith("this quiz is done.")


def wait_for_reply(group, wanted, others, seconds=60):
    """Return the words below a question: those wanted, or else none of the others."""
    reply = group.locator("xpath=../following-sibling::*")
    deadline = time.monotonic() + seconds
    while True:
        words = reply.inner_text().strip()
        if words == wanted or (wanted is None and words and words not in others):
            return words
        assert time.monotonic() < deadline, f"the reply still is {words!r}"
        time.sleep(0.05)


def play(page, cell):
    """Let each play button run, by keys, to the end of its slider and stop."""
    for row in cell.locator(".widget-hbox:has(> .widget-play)").all():
        slider = row.locator("[role=slider]")
        button, back = row.locator(".widget-play button:visible").all()
        assert [b.get_attribute("aria-label") for b in (button, back)] == [
            "Play",
            "Back to the first step",
        ]
        before, first, last = (
            slider.get_attribute(f"aria-value{name}") for name in ("now", "min", "max")
        )
        stored = describe(cell)["alt"]
        back.focus()
        page.keyboard.press("Enter")
        playwright.expect(slider).to_have_attribute("aria-valuenow", first)
        wait_for_words(cell, operator.ne, stored)
        begun = describe(cell)["alt"]
        button.focus()
        page.keyboard.press("Space")
        playwright.expect(button).to_have_attribute("aria-label", "Pause")
        seconds = float(last) - float(first)  # it takes one for each step
        finished = playwright.expect(slider)
        finished.to_have_attribute("aria-valuenow", last, timeout=1e3 * (seconds + 5))
        playwright.expect(button).to_have_attribute("aria-label", "Play")
        wait_for_words(cell, operator.ne, begun)
        slider.focus()
        while slider.get_attribute("aria-valuenow") != before:
            page.keyboard.press("ArrowLeft")
        wait_for_words(cell, operator.eq, stored)


def press(page, cell, control, key):
    """Press a key and give the picture; wait for another one where the value moved.

    The kernel draws for a control in a thread of its own, beside the cells: that it
    has run a cell since says nothing.
    """
    value, picture = control.evaluate(VALUE), describe(cell)
    page.keyboard.press(key)
    if control.evaluate(VALUE) != value:
        wait_for_words(cell, operator.ne, picture["alt"])
    return describe(cell)


def wait_for_words(cell, compare, words, seconds=60):
    deadline = time.monotonic() + seconds
    while not compare(describe(cell)["alt"], words):
        assert time.monotonic() < deadline, f"the picture still is {describe(cell)}"
        time.sleep(0.05)


def describe(cell):
    picture = cell.locator(".jp-OutputArea-output img").first
    return picture.evaluate("image => ({src: image.src, alt: image.alt})")


def pictures_without_words(page):
    images = page.locator(f"{ACTIVE} .jp-OutputArea-output img")
    return sum(not image.get_attribute("alt") for image in images.all())
