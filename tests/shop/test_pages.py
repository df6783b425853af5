"""A person walks through the shop's pages: a real Chromium, a good and a bad network."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, Playwright, expect

from tests.browser.conftest import launched
from tests.browser.conftest import playwright as playwright
from tests.shop.conftest import shop_on

USES = ("payments", "orders", "subscriptions", "sign-up", "uploads")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with shop_on("sqlite", tmp_path_factory.mktemp("shop")) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def chromium(playwright: Playwright) -> Iterator[Browser]:
    with launched(playwright) as browser:
        yield browser


@pytest.fixture
def context(chromium: Browser, url: str) -> Iterator[BrowserContext]:
    context = chromium.new_context(base_url=url)
    context.set_default_timeout(20_000)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A new visitor's tab, which may not break the pages' own rules."""
    said: list[str] = []
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    broken = [text for text in said if "Security Policy" in text or "Error:" in text]
    assert not broken


def screenshot(page: Page, name: str) -> None:
    """Keep what the page shows, in the folder SEMEL_SCREENSHOTS, for people to look at."""
    if folder := os.environ.get("SEMEL_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/shop-{name}.png", full_page=True)


def make_it_bad(page: Page) -> None:
    page.get_by_role("button", name="Simulate a bad network").click()
    expect(page.get_by_text("Bad network: every second response is lost")).to_be_visible()


def press(page: Page, name: str, *, exact: bool = True) -> None:
    page.get_by_role("button", name=name, exact=exact).click()


def happened(page: Page, count: int) -> None:
    expect(page.locator("#happened")).to_have_text(str(count))


def on_the_wire(page: Page, *texts: str) -> None:
    """The latest line of the wire's log has these texts."""
    for text in texts:
        expect(page.locator(".wire tr").first).to_contain_text(text)


def made(page: Page, what: str) -> str:
    expect(page.locator(".note")).to_contain_text(what)
    return page.locator(".note").inner_text()


def opened_again(page: Page, path: str) -> None:
    """Open a page after an answer was lost: Chromium's own page about it may still come first."""
    try:
        page.goto(path)
    except Error:
        page.wait_for_url(lambda url: url.endswith(path))


def until_answered(page: Page, pressing: Callable[[], None]) -> None:
    """Send a plain form. Where the browser does not send it again by itself, the person does."""
    here = page.url
    try:
        with page.expect_navigation():
            pressing()
    except Error:
        opened_again(page, here)
        with page.expect_navigation():
            pressing()
    expect(page.locator(".wire")).to_contain_text("response lost")


# --- payments ----------------------------------------------------------------------------------


def test_payments_pressed_twice_gone_back_to_and_edited(page: Page) -> None:
    page.goto("/try/payments")
    press(page, "Press twice")
    first = made(page, "Payment")
    happened(page, 1)
    page.go_back()
    press(page, "Pay")  # the same, unchanged
    assert made(page, "Payment") == first
    happened(page, 1)
    on_the_wire(page, "303", "replayed")
    page.go_back()
    page.get_by_label("Amount in €").fill("20.90")
    press(page, "Pay")
    expect(page.locator(".note")).not_to_have_text(first)
    happened(page, 2)
    press(page, "Send the last one again")
    on_the_wire(page, "303", "replayed")
    press(page, "… with a change")
    expect(page.locator("#status")).to_contain_text("422")
    on_the_wire(page, "422")
    happened(page, 2)
    screenshot(page, "payments")


def test_payments_on_a_bad_network_are_tried_again_and_made_once(page: Page) -> None:
    page.goto("/try/payments")
    make_it_bad(page)
    press(page, "Pay")
    made(page, "Payment")
    happened(page, 1)
    on_the_wire(page, "303", "replayed")
    expect(page.locator(".wire tr").nth(1)).to_contain_text("response lost")
    screenshot(page, "payments-bad")


def test_payments_outlast_the_pool_of_keys(page: Page) -> None:
    page.goto("/try/payments")
    for amount in range(1, 10):
        with page.expect_navigation(url=re.compile(r"made=")):
            page.get_by_label("Amount in €").fill(str(amount))
            press(page, "Pay")
        page.go_back()
    page.goto("/try/payments")
    happened(page, 9)


def test_payments_are_made_once_without_javascript(chromium: Browser, url: str) -> None:
    context = chromium.new_context(base_url=url, java_script_enabled=False)
    page = context.new_page()
    page.goto("/try/payments")
    press(page, "Pay")
    made(page, "Payment")
    press(page, "Send the last one again")
    on_the_wire(page, "303", "replayed")
    happened(page, 1)
    context.close()


# --- orders ------------------------------------------------------------------------------------


def test_orders_pressed_twice_changed_and_deleted(page: Page) -> None:
    page.goto("/try/orders")
    press(page, "Press twice")
    expect(page.locator("#answers li")).to_have_count(2)
    expect(page.locator("#answers b", has_text="201")).to_have_count(1)
    expect(page.locator("#answers b", has_text="412")).to_have_count(1)
    happened(page, 1)
    page.get_by_label("Quantity").fill("3")
    press(page, "Change it")
    expect(page.locator("#answers b").first).to_have_text("200")
    expect(page.locator("#rows + table")).to_contain_text("× 3, version 2")
    screenshot(page, "orders")
    for count in (4, 5):
        press(page, "Delete it")
        expect(page.locator("#answers li")).to_have_count(count)
        expect(page.locator("#answers b").first).to_have_text("204")
    happened(page, 0)


def test_orders_on_a_bad_network_are_created_and_told_so(page: Page) -> None:
    page.goto("/try/orders")
    make_it_bad(page)
    press(page, "Order")
    expect(page.locator("#answers li")).to_have_count(1)
    expect(page.locator("#answers b")).to_have_text("201")
    expect(page.locator("#answers")).to_contain_text("replayed")
    happened(page, 1)
    expect(page.locator(".wire tr").nth(1)).to_contain_text("response lost")


# --- subscriptions -----------------------------------------------------------------------------


def test_subscriptions_are_one_until_they_are_cancelled(page: Page) -> None:
    page.goto("/try/subscriptions")
    tea = page.locator("[data-plan=tea]")
    tea.get_by_role("button", name="Subscribe").click()
    first = made(page, "subscription")
    tea.get_by_role("button", name="Subscribe again").click()
    on_the_wire(page, "303", "replayed")
    assert made(page, "subscription") == first
    happened(page, 1)
    tea.get_by_role("button", name="Cancel").click()
    expect(tea).to_contain_text("not subscribed")
    tea.get_by_role("button", name="Subscribe").click()
    expect(page.locator(".note")).to_be_visible()
    assert made(page, "subscription") != first
    happened(page, 2)
    screenshot(page, "subscriptions")


def test_subscriptions_on_a_bad_network_are_there_once(page: Page) -> None:
    page.goto("/try/subscriptions")
    make_it_bad(page)
    try:
        with page.expect_navigation():
            press(page, "Subscribe to Coffee, monthly")
    except Error:  # the browser has not sent it again by itself, and the page knows all the same
        opened_again(page, "/try/subscriptions")
    expect(page.locator(".wire")).to_contain_text("response lost")
    happened(page, 1)


# --- sign-up -----------------------------------------------------------------------------------


def test_sign_up_twice_is_one_account(page: Page) -> None:
    page.goto("/try/sign-up")
    press(page, "Sign up")
    first = made(page, "account")
    page.get_by_label("Name").fill("Ada Lovelace")
    press(page, "Sign up")
    on_the_wire(page, "303", "replayed")
    assert made(page, "account") == first
    happened(page, 1)
    screenshot(page, "sign-up")


def test_sign_up_on_a_bad_network_is_one_account(page: Page) -> None:
    page.goto("/try/sign-up")
    make_it_bad(page)

    def sign_up() -> None:
        page.get_by_label("E-mail").fill("grace@example.org")
        press(page, "Sign up")

    until_answered(page, sign_up)
    made(page, "account")
    on_the_wire(page, "303", "replayed")
    happened(page, 1)


# --- uploads -----------------------------------------------------------------------------------


def test_uploads_are_stored_once_and_go_on_after_a_cut(page: Page, tmp_path: Path) -> None:
    file, copy = tmp_path / "photo.bin", tmp_path / "copy.bin"
    file.write_bytes(os.urandom(3 * 1024 * 1024))
    copy.write_bytes(file.read_bytes())
    page.goto("/try/uploads")
    page.get_by_label("File").set_input_files(file)

    held = []
    pieces = re.compile(r"/uploads/[0-9a-f]+$")
    page.route(pieces, lambda route: held.append(route))  # the first piece is on its way
    with page.expect_request(lambda request: request.method == "PATCH"):
        press(page, "Upload")
    press(page, "Cut the connection")
    expect(page.locator("#status")).to_contain_text("goes on")
    page.unroute(pieces)

    press(page, "Upload")
    expect(page.locator("#status")).to_have_text("Uploaded.")
    expect(page.locator("#answers")).to_contain_text("goes on at byte 0")
    happened(page, 1)
    page.get_by_label("File").set_input_files(copy)
    press(page, "Upload")
    expect(page.locator("#rows + table")).to_contain_text("copy.bin")
    happened(page, 1)
    screenshot(page, "uploads")


def test_uploads_on_a_bad_network_ask_how_far_they_came(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "photo.bin"
    file.write_bytes(os.urandom(3 * 1024 * 1024))
    page.goto("/try/uploads")
    make_it_bad(page)
    page.get_by_label("File").set_input_files(file)
    press(page, "Upload")
    expect(page.locator("#status")).to_have_text("Uploaded.")
    happened(page, 1)
    expect(page.locator(".wire")).to_contain_text("response lost")


# --- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["", *(f"try/{use}" for use in USES)])
def test_each_page_fits_a_narrow_screen_and_names_its_fields(
    chromium: Browser, url: str, use: str
) -> None:
    context = chromium.new_context(base_url=url, viewport={"width": 400, "height": 800})
    page = context.new_page()
    page.goto(f"/{use}")
    width = page.evaluate("document.documentElement.scrollWidth")
    nameless = page.evaluate(
        "[...document.querySelectorAll('input:not([type=hidden]), button, progress')].filter("
        "(e) => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).length"
    )
    screenshot(page, f"narrow-{use.rpartition('/')[2] or 'start'}")
    context.close()
    assert (width, nameless) == (400, 0)


def test_the_start_page_shows_what_programs_do(chromium: Browser, url: str) -> None:
    context = chromium.new_context(base_url=url, color_scheme="dark")
    page = context.new_page()
    page.goto("/")
    page.get_by_text("Order", exact=True).click()
    press(page, "Double-click")
    expect(page.locator("#answers li")).to_have_count(2)
    expect(page.locator("#answers")).to_contain_text("nothing happened again")
    page.get_by_role("link", name="Payments", exact=True).click()
    press(page, "Pay")
    made(page, "Payment")
    screenshot(page, "payments-dark")
    page.goto("/")
    screenshot(page, "start-dark")
    context.close()
