"""Does the report load as fast as an empty page with plotly.js? Interleaved, in Chromium.

    python -m benchmarks.page_load STUDY [--repeats 15]

Both pages are opened in turn in fresh contexts; the time is from the start of the navigation to
the end of the load event, and to the first figure. Prints medians, quartiles and the ratio, which
is of medians of pairs, and writes benchmarks/results/page_load.json.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from plotly.offline import get_plotlyjs

from landscape.storage import StudyFolder

RESULTS = Path(__file__).with_name("results")
EMPTY = '<!doctype html><html lang="en"><title>empty</title><body><script>{}</script></body></html>'
LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"


def load(browser, page: Path, first: str) -> tuple[float, float]:
    """Milliseconds to the end of the load event, and to the element `first` (NaN: none asked)."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    visit = context.new_page()
    visit.goto(page.resolve().as_uri(), wait_until="load")
    visit.wait_for_function(f"{LOADED} > 0")
    loaded, drawn = visit.evaluate(LOADED), float("nan")
    if first:
        visit.wait_for_selector(first)
        drawn = visit.evaluate("performance.now()")
    context.close()
    return loaded, drawn


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    report = StudyFolder(options.study).report
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        empty = Path(folder) / "empty.html"
        empty.write_text(EMPTY.format(get_plotlyjs()), encoding="utf-8")
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        pages = {"report": (report, ".figure .main-svg"), "empty": (empty, "")}
        for page in pages.values():  # warm the caches of the disk
            load(browser, *page)
        times = {name: [] for name in pages}
        for repeat in range(options.repeats):
            for name in sorted(pages, reverse=bool(repeat % 2)):
                times[name].append(load(browser, *pages[name]))
        version = browser.version
        browser.close()
    ours, theirs = (np.array(times[name]) for name in ("report", "empty"))
    ratios = ours[:, 0] / theirs[:, 0]
    found = {
        "chromium": version,
        "n": options.repeats,
        "megabytes": report.stat().st_size / 1e6,
        "report_ms": np.percentile(ours[:, 0], [25, 50, 75]).tolist(),
        "first_figure_ms": np.percentile(ours[:, 1], [25, 50, 75]).tolist(),
        "empty_ms": np.percentile(theirs[:, 0], [25, 50, 75]).tolist(),
        "ratio": np.percentile(ratios, [25, 50, 75]).tolist(),
    }
    (RESULTS / "page_load.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
