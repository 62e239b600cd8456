"""Pictures of a report in headless Chromium: python docs/screenshots.py RUN/report OUT."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def main(report: Path, out: Path) -> None:
    """Writes report_desktop.png, report_dark.png (one image, large) and report_phone.png."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for name, size, theme in (
            ("desktop", (1280, 800), "light"),
            ("dark", (1280, 800), "dark"),
            ("phone", (390, 844), "light"),
        ):
            page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=theme)
            page.goto((report / "index.html").resolve().as_uri())
            page.wait_for_selector("canvas[data-drawn=advcam]")
            if name == "dark":
                page.get_by_role("button", name="Open").nth(1).click()
                page.wait_for_selector("#panels canvas[data-drawn=mask]")
            page.wait_for_load_state("networkidle")
            page.screenshot(path=out / f"report_{name}.png")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
