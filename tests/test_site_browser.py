"""The built site in Chromium: every page readable, every slider moved by its keys.

Skips, saying why, where the site is not built or something is missing; with
SITE_REQUIRED it fails instead.
"""

import functools
import http.server
import itertools
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
from pins import ROOT

SITE = ROOT / "build" / "site"
CONTRAST = (Path(__file__).parent / "site_contrast.js").read_text(encoding="utf-8")
FOUND = sorted(str(p.relative_to(SITE).as_posix()) for p in SITE.rglob("*.html"))
PAGES = [name for name in FOUND if not name.startswith("_")]  # no parts of the theme's
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
OBSTACLE = (
    "no Chromium on this machine"
    if CHROMIUM is None
    else None
    if (SITE / "index.html").exists()
    else "the site is not built: make site"
)

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    OBSTACLE = "the site's browser test needs Playwright (pip)"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        bool(OBSTACLE) and not os.environ.get("SITE_REQUIRED"), reason=str(OBSTACLE)
    ),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address():
    """Serve the site on this machine."""
    handler = functools.partial(Quiet, directory=SITE)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def browser():
    assert OBSTACLE is None, OBSTACLE
    with sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


class Watched:
    """A page that notes what went wrong, and each address outside of the site."""

    def __init__(self, browser, address, theme="light", width=1280):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, reduced_motion="reduce"
        )
        context.add_init_script(
            f"localStorage.setItem('mode', '{theme}');"
            f"localStorage.setItem('theme', '{theme}')"
        )
        self.address, self.faults = address, []
        self.page = context.new_page()
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._said)
        self.page.on("request", self._asked)

    def _said(self, message):
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def _asked(self, request):
        if not request.url.startswith((self.address, "data:")):
            self.faults.append(f"asked for {request.url}")

    def open(self, name):
        """Open a page and all that is folded on it, without the time it takes."""
        self.page.goto(self.address + name)
        self.page.add_style_tag(content="* { animation: none !important }")
        self.page.evaluate(
            "document.querySelectorAll('details').forEach((d) => { d.open = true; })"
        )
        return self.page


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_word_of_every_page_has_a_contrast_of_four_and_a_half(
    browser, address, theme
):
    watched = Watched(browser, address, theme)
    low = []
    for name in PAGES:
        page = watched.open(name)
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        low += [f"{name}: {found}" for found in page.evaluate(CONTRAST)]
    watched.page.context.close()
    assert low == []
    assert watched.faults == []


def test_the_measure_of_contrast_finds_pale_words(browser, address):
    watched = Watched(browser, address)
    page = watched.open("index.html")
    page.evaluate("document.querySelector('.tagline').style.color = '#999'")
    assert any("tagline" in found for found in page.evaluate(CONTRAST))
    watched.page.context.close()


def test_no_page_is_wider_than_a_phone(browser, address):
    watched = Watched(browser, address, width=390)
    wide = []
    for name in PAGES:
        page = watched.open(name)
        if page.evaluate("document.documentElement.scrollWidth") > 390:
            wide.append(name)
    watched.page.context.close()
    assert wide == []


def test_each_slider_is_moved_by_keys_and_says_what_it_shows(browser, address):
    watched = Watched(browser, address)
    moved = 0
    for name in (n for n in PAGES if n.startswith("notebooks/")):
        page = watched.open(name)
        for figure in page.locator("figure.explorer").all():
            sliders = figure.locator("input[type=range]").all()
            assert sliders, f"{name}: a widget without sliders"
            for slider in sliders:
                check_slider(name, figure, slider)
                moved += 1
        assert page.locator("figure.explorer").count(), f"{name}: no widget"
    watched.page.context.close()
    assert moved >= 27
    assert watched.faults == []


def check_slider(name, figure, slider):
    """Home, right arrow, End: each shows another picture that is there, in words."""
    image, seen = figure.locator("img"), []
    label = figure.locator(f"label[for={slider.get_attribute('id')}]")
    assert label.inner_text().strip(), name
    for key in ("Home", "ArrowRight", "End"):
        slider.press(key)
        image.evaluate("image => image.decode()")  # an error where there is no file
        alt = image.get_attribute("alt")
        assert figure.locator(".explorer-words").inner_text().strip() == alt.strip()
        assert slider.get_attribute("aria-valuetext").strip()
        seen.append((image.get_attribute("src"), alt))
    assert len({source for source, _ in seen}) >= 2, name
    assert all(alt for _, alt in seen), name


def test_the_valley_walks_and_stops(browser, address):
    watched = Watched(browser, address)
    page = watched.open("index.html")
    slider, button = page.locator("#valley-step"), page.locator(".valley-play")
    slider.press("Home")
    first = page.locator("[data-way=RSO] polyline").get_attribute("points")
    slider.press("End")
    assert page.locator("[data-way=RSO] polyline").get_attribute("points") != first
    assert "RSO at" in slider.get_attribute("aria-valuetext")
    button.press("Enter")
    assert button.inner_text() == "Pause"
    button.press("Enter")
    assert button.inner_text() == "Play"
    watched.page.context.close()
    assert watched.faults == []


def test_every_picture_has_words(browser, address):
    watched = Watched(browser, address)
    for name in PAGES:
        page = watched.open(name)
        alts = page.locator("article img").evaluate_all("all => all.map((i) => i.alt)")
        assert all(alt.strip() for alt in alts), name
    watched.page.context.close()


def test_the_search_shows_lessons_first_and_words_of_theirs(browser, address):
    watched = Watched(browser, address)
    page = watched.page
    page.goto(f"{address}search.html?q=penalty")
    page.locator("ul.search li p.context").first.wait_for()
    page.wait_for_load_state("networkidle")
    results = page.locator("ul.search li").all_inner_texts()
    assert any("Store a penalty with its layer" in one for one in results[:3])
    assert not any(re.search(r"\.(ipynb|md|html)\b", one) for one in results)
    assert not any("System Settings" in one for one in results)
    watched.page.context.close()
    assert watched.faults == []


def test_nothing_is_fetched_from_elsewhere():
    """Scripts, styles and pictures of other sites, also those a click would need."""
    outside = re.compile(
        r"<(?:script|img|iframe)[^>]*src=\"(?:https?:)?//|<link"
        r"(?=[^>]*rel=\"stylesheet\")[^>]*href=\"(?:https?:)?//"
    )
    for name in PAGES:
        text = (SITE / name).read_text(encoding="utf-8")
        assert not outside.search(text), name


def test_lessons_lead_to_each_other():
    lessons = [n for n in PAGES if n.startswith("notebooks/")]
    assert len(lessons) >= 10
    for before, after in itertools.pairwise(lessons):
        text = (SITE / before).read_text(encoding="utf-8")
        assert re.search(rf'class="right-next"\s+href="{Path(after).name}"', text)
