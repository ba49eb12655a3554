"""Draws docs/page.png and docs/page-photos.png: parts of the page of a comparison, as Chromium shows them.

python -m docs.draw_page comparison/comparison.html

Needs the extra `browser` and Chromium.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

WIDTH = 1100


def save(tab: Page, name: str, height: int) -> None:
    """Saves the uppermost `height` pixels of the window, with a palette, which makes the file small."""
    encoded = tab.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    palette = image.quantize(256)
    dithered = image.quantize(256, palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    dithered.save(Path(__file__).parent / name, optimize=True)


def main(page: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        tab = browser.new_page(viewport={"width": WIDTH, "height": 1200})
        tab.goto(Path(page).resolve().as_uri())
        save(tab, "page.png", 1080)
        tab.locator("#matrix .wrong").evaluate_all(  # the cell with most errors
            "cells => cells.sort((a, b) => b.innerText - a.innerText)[0].click()"
        )
        tab.locator("summary").first.click()
        tab.locator("#confusion").evaluate("section => section.scrollIntoView({behavior: 'instant'})")
        save(tab, "page-photos.png", 1080)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
