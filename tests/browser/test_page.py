"""The report in a real browser: draws, asks nothing of a network, fits a phone, prints."""

import os
import shutil

import pytest

from landscape import report
from tests.fixtures_results import write_study

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LAPTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def _missing(what):
    if os.environ.get("LANDSCAPE_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{what}, and LANDSCAPE_REQUIRE_BROWSER=1 makes that a failure")
    pytest.skip(what)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        _missing("no chromium executable on the PATH")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("playwright is not installed (pip install playwright)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    folder = write_study(root, noisy=("sgd", "sam", "zsharp"), clean=("sgd", "sam"), seeds=2)
    return report.write(folder, formats=())


class Visit:
    """One page view with everything it said and asked for."""

    def __init__(self, browser, path, viewport, **options):
        self.context = browser.new_context(viewport=viewport, **options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", self.hear)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(f"file://{path}")

    def hear(self, message):
        # What Chromium says of the speed of plotly's 3-D: how letters and pixels are read.
        if not any(part in message.text for part in ("Canvas2D: Multiple readback", "ReadPixels")):
            self.said.append(message.text)

    def open_everything(self):
        self.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")

    def scroll(self):
        y = 0
        while y < self.page.evaluate("document.documentElement.scrollHeight"):
            self.page.evaluate(f"window.scrollTo(0, {y})")
            self.page.wait_for_timeout(60)
            y += 700
        self.page.wait_for_function(
            "document.querySelectorAll('.figure').length ==="
            " document.querySelectorAll('.figure.js-plotly-plot .main-svg:first-child').length",
            timeout=30000,
        )

    def count(self, selector):
        return self.page.locator(selector).count()


@pytest.fixture(
    params=[pytest.param(LAPTOP, marks=pytest.mark.slow), PHONE], ids=["laptop", "phone"]
)
def visit(request, browser, page_path):
    one = Visit(browser, page_path, request.param)
    yield one
    one.context.close()


def test_every_figure_draws_without_a_word_and_without_a_network(visit):
    visit.open_everything()
    visit.scroll()
    assert visit.count(".figure") >= 20
    assert visit.count(".figure .trace, .figure .contour, .figure .hm") > 100
    assert visit.said == []
    assert [url for url in visit.asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_the_page_never_scrolls_sideways(visit):
    visit.open_everything()
    visit.scroll()
    width = visit.page.viewport_size["width"]
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_answer_is_on_the_first_screen(visit):
    box = visit.page.locator(".lede").bounding_box()
    assert box["y"] + box["height"] < visit.page.viewport_size["height"]


def test_no_button_offers_to_upload(browser, page_path):
    visit = Visit(browser, page_path, LAPTOP)
    visit.open_everything()
    visit.scroll()
    titles = visit.page.eval_on_selector_all(
        ".modebar-btn", "buttons => buttons.map(b => b.dataset.title || '')"
    )
    assert titles
    assert not [title for title in titles if "loud" in title or "hare" in title]
    visit.context.close()


def test_printing_draws_the_figures_that_were_never_seen(browser, page_path):
    visit = Visit(browser, page_path, LAPTOP)
    visit.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    visit.page.wait_for_timeout(500)
    assert visit.count(".figure.js-plotly-plot") == visit.count(".figure")
    # No figure is cut at the edge of the paper, and the screen has its own again afterwards.
    across = "[...document.querySelectorAll('.figure')].map(f => f.layout.width)"
    assert set(visit.page.evaluate(across)) == {690}
    assert len(visit.page.pdf()) > 100_000
    visit.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    visit.page.wait_for_timeout(500)
    assert 690 not in visit.page.evaluate(across)[:2]
    visit.context.close()


def test_the_first_screen_has_the_question_the_answer_a_picture_and_what_to_do(browser, page_path):
    visit = Visit(browser, page_path, {"width": 1440, "height": 900})
    visit.page.wait_for_selector("#overview-noisy .main-svg")
    for part in ("h1", ".lede", "#overview-noisy .figure", ".words"):
        box = visit.page.locator(part).first.bounding_box()
        assert box["y"] + box["height"] < 900, part
    visit.context.close()


def opacities(visit, figure):
    return visit.page.evaluate(
        f"document.querySelector('#{figure} .figure').data"
        ".map(t => [t.name, t.opacity === undefined ? 1 : t.opacity])"
    )


def test_choosing_two_variants_pales_the_others_everywhere_and_stays_in_the_address(
    browser, page_path
):
    visit = Visit(browser, page_path, LAPTOP)
    visit.open_everything()
    visit.scroll()
    visit.page.select_option("#choose-variant", "SAM")
    visit.page.select_option("#choose-against", "SGD")
    for figure in ("overview-noisy", "history-noisy"):
        seen = opacities(visit, figure)
        assert {v for name, v in seen if name == "SAM"} - {0.14, 0.3} <= {1, 0.6, 0.45, 0.75}
        assert all(v <= 0.12 for name, v in seen if name == "ZSharp"), figure
    rows = "[...document.querySelectorAll('.evidence tr.pale')].map(r => r.dataset.variants)"
    assert "ZSharp" in visit.page.evaluate(rows)
    assert "SAM" not in visit.page.evaluate(rows)
    assert "variant=SAM&against=SGD" in visit.page.url
    again = Visit(browser, f"{page_path}?variant=SAM&against=SGD", LAPTOP)
    assert again.page.input_value("#choose-variant") == "SAM"
    visit.page.click("#choose-none")
    assert visit.page.evaluate("document.querySelectorAll('.pale').length") == 0
    visit.context.close()
    again.context.close()


def test_tables_sort_by_their_numbers_both_ways(browser, page_path):
    visit = Visit(browser, page_path, LAPTOP)
    head = visit.page.locator(".evidence thead th button").nth(1)
    rows = "[...document.querySelector('.evidence').tBodies[0].rows]"
    column = f"{rows}.map(r => parseFloat(r.cells[1].textContent))"
    head.click()
    up = visit.page.evaluate(column)
    head.click()
    down = visit.page.evaluate(column)
    assert up == sorted(up)
    assert down == sorted(up, reverse=True)
    visit.context.close()


def test_figures_follow_a_dark_page(browser, page_path):
    visit = Visit(browser, page_path, LAPTOP, color_scheme="dark")
    visit.page.wait_for_selector("#overview-noisy .main-svg")
    visit.page.wait_for_timeout(300)
    ink = visit.page.evaluate("document.querySelector('#overview-noisy .figure').layout.font.color")
    assert ink == "#e8e6e1"
    visit.context.close()


def test_every_figure_is_one_stop_of_the_tabulator_and_has_a_name(browser, page_path):
    visit = Visit(browser, page_path, LAPTOP)
    visit.open_everything()
    visit.scroll()
    plots = "[...document.querySelectorAll('figure .plot')]"
    title = "document.getElementById(p.getAttribute('aria-labelledby')).textContent"
    assert visit.page.evaluate(f"{plots}.every(p => p.tabIndex === 0 && {title})")
    inside = "[...document.querySelectorAll('figure .plot *')].filter(e => e.tabIndex >= 0)"
    assert visit.page.evaluate(f"{inside}.filter(e => !(e instanceof SVGElement)).length") == 0
    visit.context.close()
