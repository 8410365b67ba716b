"""Pictures of the page of a server that runs, by a real browser: docs/page-*.png.

    edgellm serve qwen2.5-coder-0.5b --port 8124 &
    python tools/record_page.py http://127.0.0.1:8124 docs

Needs playwright, and Chromium.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

QUESTION = (
    "Show me a Python function that counts the words of a text, with a short example of its use. Only code and one "
    "sentence."
)
PICTURES = {"page": (1100, 720, "light"), "page-dark": (1100, 720, "dark"), "page-phone": (390, 720, "light")}


def take(browser: Browser, url: str, path: Path, width: int, height: int, colours: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=colours)  # type: ignore[arg-type]
    page.goto(url)
    page.wait_for_selector("body[data-ready]")
    page.click("#open-settings")
    page.fill("#set-temperature", "0")
    page.click("#settings-done")
    page.fill("#message", QUESTION)
    page.keyboard.press("Enter")
    page.wait_for_selector("article.assistant .tools span", timeout=600_000)
    page.evaluate("document.querySelector('#messages').scrollTop = 0")
    page.screenshot(path=path)
    paint = page.evaluate("performance.getEntriesByType('paint').map(one => one.startTime)")
    print(f"{path}: first paint after {min(paint):.0f} ms")
    page.close()


def main(url: str, folder: str) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, picture in PICTURES.items():
            take(browser, url, Path(folder) / f"{name}.png", *picture)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
