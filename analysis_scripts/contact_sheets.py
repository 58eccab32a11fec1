"""Every figure and screen as a reader may meet it, side by side, to be looked at.

    python analysis_scripts/contact_sheets.py STUDY --out sheets [--only headline] [--page]

Figures: as printed, grey, and as a deuteranope and a protanope see them. `--page`: the report at
375, 768 and 1440 pixels, light and dark, the four views of its first screen, and its print.
Nothing is decided here: open the sheets.
"""

import argparse
import shutil
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from landscape import report
from landscape.storage import StudyFolder

# Machado, Oliveira and Fernandes (2009), severity 1, in linear light; grey is the luminance.
SIMULATIONS = {
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "grey": [[0.2126, 0.7152, 0.0722]] * 3,
}  # fmt: skip
SCREENS = [(375, "light"), (375, "dark"), (768, "light"), (1440, "light"), (1440, "dark")]
CELL, COLUMNS = (760, 600), 3


def seen(picture: Image.Image, how: str) -> Image.Image:
    """The picture as `how` shows it."""
    if how not in SIMULATIONS:
        return picture
    rgb = np.asarray(picture.convert("RGB"), float) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    other = np.clip(linear @ np.array(SIMULATIONS[how]).T, 0, 1)
    back = np.where(other <= 0.0031308, 12.92 * other, 1.055 * other ** (1 / 2.4) - 0.055)
    return Image.fromarray((255 * back).round().astype(np.uint8))


def sheets(pictures: list[Path], out: Path, how: str) -> None:
    """Sheets of nine pictures each."""
    for start in range(0, len(pictures), COLUMNS**2):
        some = pictures[start : start + COLUMNS**2]
        rows = -(-len(some) // COLUMNS)
        sheet = Image.new("RGB", (COLUMNS * CELL[0], rows * CELL[1]), "white")
        for place, path in enumerate(some):
            picture = seen(Image.open(path).convert("RGB"), how)
            picture.thumbnail((CELL[0] - 20, CELL[1] - 20))
            row, column = divmod(place, COLUMNS)
            sheet.paste(picture, (column * CELL[0] + 10, row * CELL[1] + 10))
        sheet.save(out / f"{how}-{start // COLUMNS**2 + 1}.png")


def screens(page: Path, out: Path) -> None:
    """The page from top to bottom at each width, and printed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for width, scheme in SCREENS:
            window = {"width": width, "height": 900}
            visit = browser.new_page(viewport=window, color_scheme=scheme)
            visit.goto(page.resolve().as_uri())
            visit.wait_for_timeout(2000)
            name = f"screen-{width}-{scheme}"
            visit.screenshot(path=out / f"{name}.png")
            for how in SIMULATIONS if name == "screen-1440-light" else ():
                seen(Image.open(out / f"{name}.png"), how).save(out / f"{name}-{how}.png")
            height, at = visit.evaluate("document.documentElement.scrollHeight"), 0
            while at < height and scheme == "light":
                visit.evaluate(f"window.scrollTo(0, {at})")
                visit.wait_for_timeout(700)
                visit.screenshot(path=out / f"{name}-{at // 900:03d}.png", timeout=120_000)
                at += 900
            if width == 1440 and scheme == "light":
                visit.evaluate("window.dispatchEvent(new Event('beforeprint'))")
                visit.wait_for_timeout(10_000)
                visit.pdf(path=out / "print.pdf", format="A4")
            visit.close()
        browser.close()
    if shutil.which("pdftoppm"):
        pages = ["pdftoppm", "-r", "50", "-png", out / "print.pdf", out / "print"]
        subprocess.run(pages, check=True)


def main() -> None:
    """Read the options and make the sheets."""
    parser = argparse.ArgumentParser(description="Contact sheets of a study's figures and page.")
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="figures by name, comma-separated; all")
    parser.add_argument("--page", action="store_true", help="the report's screens too")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    only = tuple(filter(None, options.only.split(",")))
    folder = StudyFolder(options.study)
    choice = report.FigureChoice(only=only, formats=("png",), dpi=130)
    pictures = report.write_figures(folder, choice, out=options.out / "figures")
    for how in ("print", *SIMULATIONS):
        sheets(pictures, options.out, how)
    if options.page:
        screens(folder.report, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
