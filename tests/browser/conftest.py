"""Headless Chromium, where the machine has one."""

import shutil
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    """Debian's chromium, else the one that playwright has installed."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        except api.Error as error:
            pytest.skip(f"no Chromium here: {str(error).splitlines()[0]}; apt-get install chromium")
        yield browser
        browser.close()
