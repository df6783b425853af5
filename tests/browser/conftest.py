"""Chromium, and the service it talks to through a network that can be cut."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright

from semel.testing.programs import needs
from semel.testing.proxy import Proxy
from tests.browser.service import Service
from tests.http.harness import asgi_server

expect.set_options(timeout=20_000)  # a machine under load


def chromium_program() -> str:
    return os.environ.get("SEMEL_CHROMIUM") or str(needs("chromium"))


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """A module's, not the session's: its event loop would be in the way of asynchronous tests."""
    chromium_program()
    with sync_playwright() as playwright:
        yield playwright


@contextlib.contextmanager
def launched(playwright: Playwright, **options: Any) -> Iterator[Browser]:
    browser = playwright.chromium.launch(
        executable_path=chromium_program(),
        args=["--no-sandbox", "--host-resolver-rules=MAP shop.test 127.0.0.1"],
        **options,
    )
    with contextlib.closing(browser):
        yield browser


@pytest.fixture(scope="module")
def chromium(playwright: Playwright) -> Iterator[Browser]:
    with launched(playwright) as browser:
        yield browser


@dataclass
class Site:
    """The service behind a proxy, and a tab that shows it."""

    service: Service
    proxy: Proxy
    browser: Browser
    page: Page

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}"

    def open(self, query: str = "", page: Page | None = None) -> Page:
        """Visit the form afresh."""
        page = page or self.page
        page.goto(f"{self.url}/form?{query}")
        return page

    def screenshot(self, name: str) -> None:
        """Keep what the page shows, in the folder SEMEL_SCREENSHOTS, for people to look at."""
        if folder := os.environ.get("SEMEL_SCREENSHOTS"):
            self.page.screenshot(path=f"{folder}/{name}.png")

    def log(self, page: Page | None = None) -> list[dict[str, Any]]:
        """Return what the page has heard from semel.js."""
        lines = (page or self.page).locator("#log li").all_text_contents()
        return [json.loads(line) for line in lines]


@contextlib.contextmanager
def served(browser: Browser, folder: Path) -> Iterator[Site]:
    service = Service(folder / "shop.db")
    with asgi_server(service.app) as port:
        proxy = Proxy(port)
        context = browser.new_context()
        context.set_default_timeout(20_000)
        try:
            yield Site(service, proxy, browser, context.new_page())
        finally:
            service.gate.set()
            context.close()
            proxy.close()


@pytest.fixture
def site(chromium: Browser, tmp_path: Path) -> Iterator[Site]:
    with served(chromium, tmp_path) as site:
        yield site


@pytest.fixture
def cached_site(playwright: Playwright, tmp_path: Path) -> Iterator[Site]:
    """As `site`, in a browser whose back button brings a page back as it was left."""
    cached = launched(playwright, ignore_default_args=["--disable-back-forward-cache"])
    with cached as browser, served(browser, tmp_path) as site:
        yield site
