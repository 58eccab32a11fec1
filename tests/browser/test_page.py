"""The pages in a real browser: they draw, ask no network, fit a phone, print, can be read out."""

import json
import os
import shutil
from itertools import pairwise

import pytest

from landscape import report
from landscape.report import comparison, pair
from landscape.report.study import StudyResults
from tests.fixtures_results import write_study
from tests.fixtures_surfaces import write_surfaces

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
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    folder = write_study(root, noisy=("sgd", "sam", "zsharp"), clean=("sgd", "sam"), seeds=2)
    write_surfaces(folder.root)
    return folder


@pytest.fixture(scope="module")
def page_path(study):
    return report.write(study, formats=())


class Visit:
    """One page view with everything it said and asked for."""

    def __init__(self, browser, path, viewport, **options):
        self.context = browser.new_context(viewport=viewport, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(180_000)  # a busy machine is slow, which is no fault here
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


def test_on_a_telephone_panels_stack_and_nothing_is_cut(browser, page_path):
    visit = Visit(browser, page_path, {"width": 375, "height": 800})
    visit.open_everything()
    visit.scroll()
    frames = "[...document.querySelectorAll('.plot')]"
    assert visit.page.evaluate(f"{frames}.every(p => p.scrollWidth <= p.clientWidth + 1)")
    layout = "document.querySelector('#headline-noisy .figure').layout"
    visit.page.evaluate("document.getElementById('headline-noisy').scrollIntoView()")
    shown = visit.page.evaluate(
        f"['xaxis', 'xaxis2', 'xaxis3'].map(k => [{layout}[k].domain, {layout}[k].title.text])"
    )
    assert all(domain == [0, 1] and title for domain, title in shown)
    # Each has its rows by name, and stands wholly below the one before it.
    rows = visit.page.evaluate(
        f"['yaxis', 'yaxis2', 'yaxis3'].map(k => [{layout}[k].domain, {layout}[k].showticklabels])"
    )
    assert all(named is not False for _, named in rows)
    assert all(above[0] > below[1] for (above, _), (below, _) in pairwise(rows))
    # Turned, it has the columns that fit.
    visit.page.set_viewport_size({"width": 1280, "height": 800})
    visit.page.wait_for_timeout(500)
    bring(visit, "headline-noisy")  # what is far waits until it comes near
    visit.page.wait_for_function(f"{layout}.xaxis.domain[1] < 0.7")
    visit.context.close()


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


@pytest.mark.parametrize("which", ["report", "figure"])
def test_buttons_of_a_figure_cover_none_of_its_titles(browser, page_path, study, which):
    path = page_path
    if which == "figure":
        choice = report.FigureChoice(only=("headline", "loss_plane"), formats=("html",))
        report.write_figures(study, choice)
        path = next(study.figures.glob("loss_plane*.html"))
    visit = Visit(browser, path, LAPTOP)
    visit.page.wait_for_selector(".js-plotly-plot .modebar")
    covered = """() => [...document.querySelectorAll('.js-plotly-plot')].map(plot => {
        const bar = plot.querySelector('.modebar').getBoundingClientRect();
        const cut = plot.closest('.scroll').getBoundingClientRect();
        const words = [...plot.querySelectorAll('.annotation, .xtick, .ytick, .traces, .legend')]
            .map(part => part.getBoundingClientRect());
        return [bar.height > 5 && bar.top >= cut.top && bar.right <= cut.right + 1,
                words.filter(w => w.left < bar.right && w.right > bar.left
                    && w.top < bar.bottom && w.bottom > bar.top).length];
    })"""
    found = visit.page.evaluate(covered)
    assert found
    assert all(one == [True, 0] for one in found)
    # The pointer gets to them: what it crosses on its way belongs to the figure.
    visit.page.locator(".js-plotly-plot").first.hover()
    visit.page.locator(".modebar-btn").first.hover()
    shown = "() => getComputedStyle(document.querySelector('.modebar')).opacity"
    visit.page.wait_for_function(f"() => Number(({shown})()) === 1")
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
    bring(visit, "overview-noisy")
    assert visit.page.evaluate(across)[0] != 690
    visit.context.close()


def test_the_first_screen_has_the_question_the_answer_a_picture_and_what_to_do(browser, page_path):
    visit = Visit(browser, page_path, {"width": 1440, "height": 900})
    visit.page.wait_for_selector("#overview-noisy .main-svg")
    for part in ("h1", ".lede", "#overview-noisy .figure", ".words"):
        box = visit.page.locator(part).first.bounding_box()
        assert box["y"] + box["height"] < 900, part
    visit.context.close()


def bring(visit, figure):
    """A figure comes near, and is drawn as what is chosen now says."""
    box = f"document.querySelector('#{figure} .figure')"
    visit.page.evaluate(f"{box}.scrollIntoView()")
    visit.page.wait_for_function(f"{box}.data && !{box}.dataset.stale")


def opacities(visit, figure):
    bring(visit, figure)
    return visit.page.evaluate(
        f"document.querySelector('#{figure} .figure').data"
        ".map(t => [t.name, t.opacity === undefined ? 1 : t.opacity])"
    )


def pick(visit, *names):
    for name in names:
        visit.page.click(f".key[data-variant='{name}']")


def test_choosing_two_variants_pales_the_others_everywhere_and_stays_in_the_address(
    browser, page_path
):
    visit = Visit(browser, page_path, LAPTOP)
    visit.open_everything()
    visit.scroll()
    before = {f: opacities(visit, f) for f in ("overview-noisy", "history-noisy")}
    pick(visit, "SAM", "SGD")
    for figure, own in before.items():
        for (name, now), (_, whole) in zip(opacities(visit, figure), own, strict=True):
            assert now == pytest.approx(0.12 * whole if name == "ZSharp" else whole), figure
    rows = "[...document.querySelectorAll('.evidence tr.pale')].map(r => r.dataset.variants)"
    assert "ZSharp" in visit.page.evaluate(rows)
    assert "SAM" not in visit.page.evaluate(rows)
    assert "variant=SAM&against=SGD" in visit.page.url
    again = Visit(browser, f"{page_path}?variant=SAM&against=SGD", LAPTOP)
    pressed = (
        "[...document.querySelectorAll('.key[aria-pressed=true]')].map(k => k.dataset.variant)"
    )
    assert sorted(again.page.evaluate(pressed)) == ["SAM", "SGD"]
    # A third takes the place of the second.
    pick(visit, "ZSharp")
    assert sorted(visit.page.evaluate(pressed)) == ["SAM", "ZSharp"]
    visit.page.click("#choose-none")
    assert visit.page.evaluate("document.querySelectorAll('.pale').length") == 0
    assert {f: opacities(visit, f) for f in before} == before
    visit.context.close()
    again.context.close()


def test_panels_sentences_and_tables_of_others_are_pale_too(browser, page_path):
    visit = Visit(browser, page_path, LAPTOP)
    visit.open_everything()
    visit.scroll()
    pick(visit, "SAM")
    # A plane belongs to the variant that its panel is called after.
    bring(visit, "loss_plane-noisy")
    planes = visit.page.evaluate(
        "document.querySelector('#loss_plane-noisy .figure').data"
        ".filter(t => t.type === 'contour')"
        ".map(t => [t.meta, t.opacity === undefined ? 1 : t.opacity])"
    )
    assert {name for name, _ in planes} >= {"SAM", "ZSharp"}
    assert all(v == (1 if name == "SAM" else 0.12) for name, v in planes)
    said = visit.page.evaluate(
        "[...document.querySelectorAll('#answer [data-variants]')]"
        ".map(e => [e.dataset.variants.split('|'), e.classList.contains('pale')])"
    )
    assert all(pale == ("SAM" not in names) for names, pale in said)
    tables = visit.page.evaluate(
        "[...document.querySelectorAll('table [data-variants]')]"
        ".map(e => [e.dataset.variants, e.classList.contains('pale')])"
    )
    assert all(pale == ("SAM" not in names.split("|")) for names, pale in tables)
    # Rows of a figure that bear a variant's name are as pale as its marks.
    bring(visit, "headline-noisy")
    ticks = visit.page.evaluate(
        "document.querySelector('#headline-noisy .figure').layout.yaxis.ticktext"
    )
    assert [t for t in ticks if "opacity" not in t] == ["SAM"]
    visit.context.close()


def test_the_page_has_one_legend_of_variants_and_paper_has_them_in_each_figure(browser, page_path):
    visit = Visit(browser, page_path, LAPTOP)
    visit.open_everything()
    visit.scroll()
    known = visit.page.evaluate(
        "[...document.querySelectorAll('.key')].map(k => k.dataset.variant)"
    )
    assert known == ["SGD", "SAM", "ZSharp"]
    entries = (
        "[...document.querySelectorAll('.figure')].flatMap("
        "f => f.data.filter(t => t.showlegend === true).map(t => t.name))"
    )
    assert not set(visit.page.evaluate(entries)) & set(known)
    visit.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    visit.page.wait_for_timeout(500)
    assert set(visit.page.evaluate(entries)) >= set(known)
    visit.context.close()


def test_surfaces_turn_together(browser, page_path):
    visit = Visit(browser, page_path, LAPTOP)
    visit.page.evaluate("document.getElementById('loss_surface-noisy').scrollIntoView()")
    box = "document.querySelector('#loss_surface-noisy .figure')"
    visit.page.wait_for_function(f"{box}.querySelectorAll('canvas').length > 2")
    eye = {"eye": {"x": 0.5, "y": 2.0, "z": 0.8}}
    visit.page.evaluate(f"Plotly.relayout({box}, {{'scene.camera': {json.dumps(eye)}}})")
    visit.page.wait_for_timeout(300)
    eyes = visit.page.evaluate(
        f"Object.keys({box}.layout).filter(k => /^scene/.test(k))"
        f".map(k => {box}.layout[k].camera.eye)"
    )
    assert len(eyes) == 3
    assert eyes == [eye["eye"]] * 3
    visit.context.close()


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


@pytest.fixture(scope="module")
def axe():
    try:
        from axe_playwright_python.sync_playwright import Axe
    except ImportError:
        _missing("axe-playwright-python is not installed (pip install axe-playwright-python)")
    return Axe()


def violations(axe, visit):
    found = axe.run(visit.page).response["violations"]
    return [f"{one['id']}: {node['html'][:200]}" for one in found for node in one["nodes"]]


LOOKS = [("light", LAPTOP), ("dark", LAPTOP), ("light", PHONE), ("dark", PHONE)]
looks = pytest.mark.parametrize(
    ("scheme", "viewport"),
    [
        pytest.param(*look, id=f"{look[0]}-{look[1]['width']}", marks=[pytest.mark.slow][:at])
        for at, look in enumerate(LOOKS)
    ],
)


@looks
def test_axe_finds_nothing_in_the_report(browser, page_path, axe, scheme, viewport):
    visit = Visit(browser, page_path, viewport, color_scheme=scheme)
    visit.open_everything()
    visit.scroll()
    assert violations(axe, visit) == []
    pick(visit, "SAM")
    # What is pale is there to be passed over: it is not held to the contrast of text.
    assert [v for v in violations(axe, visit) if not v.startswith("color-contrast")] == []
    visit.context.close()


@pytest.fixture(scope="module")
def other_pages(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("pages")
    choice = report.FigureChoice(
        only=("headline", "loss_surface", "trajectory"), setting="noisy", formats=("html",)
    )
    figures = report.write_figures(study, choice, out=out)
    read = StudyResults.read(study)
    pair.diagnose(read, "zsharp", "sam").write(out / "diagnose")
    comparison.compare(read, read).write(out / "compare")
    return [*figures, out / "diagnose.html", out / "compare.html"]


@looks
def test_axe_finds_nothing_in_figures_compare_and_diagnose(
    browser, other_pages, axe, scheme, viewport
):
    assert len(other_pages) == 5
    for path in other_pages:
        visit = Visit(browser, path, viewport, color_scheme=scheme)
        visit.page.wait_for_timeout(300)
        assert violations(axe, visit) == [], path.name
        assert visit.said == [], path.name
        assert visit.page.title()
        width = visit.page.viewport_size["width"]
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width, path.name
        visit.context.close()
