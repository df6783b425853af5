"""Chromium, and the service it talks to through a network that can be cut."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from semel.testing.proxy import Proxy
from tests.browser.service import Service
from tests.http.harness import asgi_server

CHROMIUM = os.environ.get("SEMEL_CHROMIUM", "/usr/bin/chromium")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Start a real Chromium; in CI its absence is a failure, elsewhere a skip."""
    if not os.access(CHROMIUM, os.X_OK):
        how = f"{CHROMIUM} is not here: apt-get install chromium, or name it in SEMEL_CHROMIUM"
        if os.environ.get("CI"):
            pytest.fail(how)
        pytest.skip(how)
    # Of a module's, not the session's: its event loop would be in the way of asynchronous tests.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--host-resolver-rules=MAP shop.test 127.0.0.1"],
            ignore_default_args=["--disable-back-forward-cache"],
        )
        yield browser
        browser.close()


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

    def log(self, page: Page | None = None) -> list[dict[str, Any]]:
        """Return what the page has heard from semel.js."""
        import json

        lines = (page or self.page).locator("#log li").all_text_contents()
        return [json.loads(line) for line in lines]


@pytest.fixture
def site(chromium: Browser, tmp_path: Path) -> Iterator[Site]:
    service = Service(tmp_path / "shop.db")
    with asgi_server(service.app) as port:
        proxy = Proxy(port)
        context = chromium.new_context()
        context.set_default_timeout(15_000)
        try:
            yield Site(service, proxy, chromium, context.new_page())
        finally:
            service.gate.set()
            context.close()
            proxy.close()
