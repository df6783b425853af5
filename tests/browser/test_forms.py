"""Forms in a real Chromium, over a network that is cut: what the database holds, what is shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Site
from tests.browser.service import CSP
from tests.http.harness import Client

FORM_BODY = "application/x-www-form-urlencoded"
END_OF_FORM = b"lines"
"""Cut after this, the order is made and only its answer is lost."""


def fill(page: Page, item: str = "tea", pin: str = "hunter2") -> None:
    page.fill("[name=item]", item)
    page.fill("[name=pin]", pin)
    page.fill("[name=note]", "two\nlines")


def order(page: Page, item: str = "tea") -> None:
    fill(page, item)
    press(page)


def press(page: Page) -> None:
    page.locator("button", has_text="Order").click()


def state(page: Page, name: str) -> None:
    expect(page.locator("#order")).to_have_attribute("data-semel-state", name)


def thanks(page: Page, number: int) -> None:
    expect(page.locator("h1")).to_have_text(f"Order {number}")
    assert page.url.partition("#")[0].endswith(f"/thanks/{number}")


def ordered(page: Page, number: int, item: str = "tea") -> None:
    """Order, and see the page that the order of this number gets."""
    order(page, item)
    thanks(page, number)


def names(site: Site) -> list[str]:
    return [line["name"] for line in site.log()]


def items(site: Site) -> list[str]:
    return [item for _, item in site.service.orders()]


def test_a_double_click_is_one_order_and_the_page_shows_that_it_is_busy(site: Site) -> None:
    page = site.open()
    fill(page)
    site.service.gate.clear()
    page.locator("button", has_text="Order").dblclick()
    state(page, "send")
    expect(page.locator("button", has_text="Order")).to_be_disabled()
    expect(page.locator("#order")).to_have_attribute("aria-busy", "true")
    expect(page.get_by_text("Sending …")).to_be_visible()
    page.evaluate("document.forms[0].requestSubmit()")  # Enter, while the button is disabled
    site.screenshot("sending")
    site.service.gate.set()
    thanks(page, 1)
    site.screenshot("thanks")
    assert len(site.service.content_types) == 1
    assert items(site) == ["tea"]


def test_a_reload_while_it_is_sent_and_a_resend_are_one_order(site: Site) -> None:
    page = site.open()
    site.service.gate.clear()
    order(page)
    assert site.service.running.acquire(timeout=10)
    page.reload()
    order(page)
    site.service.gate.set()
    thanks(page, 1)
    assert items(site) == ["tea"]


def test_back_and_resubmit_is_the_same_order(site: Site) -> None:
    page = site.open()
    ordered(page, 1)
    page.go_back()
    expect(page.locator("[name=item]")).to_have_value("tea")
    ordered(page, 1)  # Chromium restores all but the password
    assert items(site) == ["tea"]


def test_back_edit_and_submit_is_a_new_order_and_the_old_one_stays_the_old_one(site: Site) -> None:
    page = site.open()
    ordered(page, 1)
    page.go_back()
    ordered(page, 2, "coffee")
    page.go_back()
    ordered(page, 1, "tea")
    assert items(site) == ["tea", "coffee"]


def test_a_fresh_visit_is_a_new_order_and_back_in_the_old_visit_is_still_the_old_one(
    site: Site,
) -> None:
    page = site.open()
    ordered(page, 1)
    page.locator("a", has_text="Order again").click()
    ordered(page, 2)
    for _ in range(3):
        page.go_back()
    ordered(page, 1)
    assert items(site) == ["tea", "tea"]


def test_a_page_that_comes_back_from_the_back_forward_cache_can_be_sent_again(
    cached_site: Site,
) -> None:
    site, page = cached_site, cached_site.open()
    page.evaluate("window.same = true")
    ordered(page, 1)
    page.go_back(wait_until="commit")
    expect(page.locator("[name=item]")).to_have_value("tea")
    assert page.evaluate("window.same")
    expect(page.locator("button", has_text="Order")).to_be_enabled()
    expect(page.locator("#order")).not_to_have_attribute("aria-busy", "true")
    press(page)
    page.wait_for_url("**/thanks/1", wait_until="commit")
    fill_page = site.open()
    order(fill_page)
    thanks(page, 2)
    assert items(site) == ["tea", "tea"]


def test_a_lost_answer_is_fetched_again_with_the_same_key(site: Site) -> None:
    page = site.open()
    site.proxy.cut_answer_to = END_OF_FORM
    ordered(page, 1)
    assert site.proxy.cuts == 1
    assert len(site.service.content_types) == 2
    assert items(site) == ["tea"]


def test_an_unknown_outcome_is_shown_and_a_resend_even_from_a_fresh_visit_finds_it_out(
    site: Site,
) -> None:
    page = site.open()
    page.evaluate("semel.tries = 1")
    site.proxy.cut_answer_to = END_OF_FORM
    order(page)
    state(page, "unknown")
    expect(page.get_by_text("We do not know whether this was done.")).to_be_visible()
    expect(page.locator("button", has_text="Order")).to_be_enabled()
    site.screenshot("unknown")
    assert names(site) == ["send", "unknown"]
    assert items(site) == ["tea"]
    site.open()
    ordered(page, 1)
    site.open()
    ordered(page, 2)
    assert items(site) == ["tea", "tea"]


def test_a_refusal_of_the_caller_says_nothing_of_an_answer_that_was_lost(site: Site) -> None:
    page = site.open()
    page.evaluate("semel.tries = 1")
    site.proxy.cut_answer_to = END_OF_FORM
    order(page)
    state(page, "unknown")
    site.service.refusals.append((401, {}))
    press(page)
    state(page, "answer")
    site.open()
    ordered(page, 1)
    assert items(site) == ["tea"]


@pytest.mark.parametrize("status", [401, 403, 409])
def test_an_answer_that_was_known_stays_known_when_a_resend_is_refused(
    site: Site, status: int
) -> None:
    page = site.open("answer=json")
    order(page)
    expect(page.locator("#answer")).to_have_text('{"order":1}')
    site.service.refusals.append((status, {}))
    press(page)
    expect(page.locator("#log li").last).to_contain_text(f'"status":{status}')
    site.open("answer=json")
    order(page)
    expect(page.locator("#answer")).to_have_text('{"order":2}')
    assert items(site) == ["tea", "tea"]


def test_an_answer_that_was_known_stays_known_when_its_key_has_expired(site: Site) -> None:
    page = site.open("answer=short")
    order(page)
    expect(page.locator("#answer")).to_have_text('{"order":1}')
    press(page)
    state(page, "unknown")
    assert site.log()[-1]["problem"].endswith("key-expired")
    site.open("answer=short")
    order(page)
    expect(page.locator("#answer")).to_have_text('{"order":2}')
    assert items(site) == ["tea", "tea"]


def test_tries_are_bounded_and_each_waits_as_long_as_the_server_asks(site: Site) -> None:
    page = site.open()
    page.evaluate("semel.tries = 3")
    for status, after in ((503, "1"), (429, "1"), (503, "1")):
        site.service.refusals.append((status, {"retry-after": after}))
    order(page)
    state(page, "unknown")
    assert [(line["name"], line.get("status")) for line in site.log()] == [
        ("send", None),
        ("wait", 503),
        ("send", None),
        ("wait", 429),
        ("send", None),
        ("unknown", 503),
    ]
    assert len({line["key"] for line in site.log()}) == 1
    assert all(line["delay"] >= 1000 for line in site.log() if line["name"] == "wait")
    assert items(site) == []
    press(page)
    thanks(page, 1)


def test_a_wait_of_more_than_a_minute_is_left_to_the_user(site: Site) -> None:
    page = site.open()
    site.service.refusals.append((503, {"retry-after": "Fri, 31 Dec 2100 23:59:59 GMT"}))
    order(page)
    state(page, "unknown")
    assert names(site) == ["send", "unknown"]
    press(page)
    thanks(page, 1)


def test_a_slow_answer_times_out_and_is_asked_for_again_until_it_is_there(site: Site) -> None:
    page = site.open()
    page.evaluate("semel.timeout = 500; semel.tries = 20")
    site.service.gate.clear()
    order(page)
    state(page, "wait")
    expect(page.get_by_text("The network is bad.")).to_be_visible()
    site.screenshot("waiting")
    expect(page.locator("#log")).to_contain_text("in-flight")
    site.service.gate.set()
    thanks(page, 1)
    assert items(site) == ["tea"]


def test_offline_waits_visibly_and_sends_when_online_again(site: Site) -> None:
    page = site.open()
    page.context.set_offline(True)
    order(page)
    state(page, "offline")
    expect(page.get_by_text("You are offline.")).to_be_visible()
    site.screenshot("offline")
    assert site.service.content_types == []
    page.context.set_offline(False)
    thanks(page, 1)
    assert items(site) == ["tea"]


def test_offline_in_mid_request_resends_when_online_again(site: Site) -> None:
    page = site.open()
    site.service.gate.clear()
    order(page)
    assert site.service.running.acquire(timeout=10)
    page.context.set_offline(True)
    site.proxy.cut_all()
    state(page, "offline")
    page.context.set_offline(False)
    site.service.gate.set()
    thanks(page, 1)
    assert items(site) == ["tea"]


def test_two_tabs_are_two_orders(site: Site) -> None:
    first, second = site.page, site.page.context.new_page()
    for page in (first, second):
        site.open("pool=5", page)
        fill(page)
    for number, page in enumerate((first, second), 1):
        press(page)
        thanks(page, number)
    assert len({key for key, _ in site.service.orders()}) == 2


def test_a_tab_opened_from_an_unknown_outcome_knows_of_it(site: Site) -> None:
    page = site.open()
    page.evaluate("semel.tries = 1")
    site.proxy.cut_answer_to = END_OF_FORM
    order(page)
    state(page, "unknown")
    with page.expect_popup() as opened:  # a copy of the tab's storage, as of a duplicated tab
        page.evaluate("void window.open(location)")
    order(opened.value)
    thanks(opened.value, 1)
    press(page)
    thanks(page, 1)
    assert items(site) == ["tea"]


# --- keys ----------------------------------------------------------------------------------------


def test_keys_come_from_the_page_and_are_refilled_at_the_low_water_mark(site: Site) -> None:
    page = site.open("answer=json&pool=4")
    for number, item in enumerate(("tea", "coffee", "milk", "cake", "rice"), 1):
        order(page, item)
        expect(page.locator("#answer")).to_have_text(f'{{"order":{number}}}')
        assert len(site.service.refills) == (number > 2)  # when fewer than 3 were left
    assert site.service.refills == [{"count": 10}]
    keys = [key for key, _ in site.service.orders()]
    assert len(set(keys)) == 5
    assert all(key.startswith("issued-") for key in keys)


def test_expired_keys_are_thrown_away_and_new_ones_fetched(site: Site) -> None:
    page = site.open("pool=4&lasts=-1")
    expired = page.locator("[data-semel-keys]").text_content() or ""
    ordered(page, 1)
    [(key, _)] = site.service.orders()
    assert key.startswith("issued-")
    assert key not in expired
    assert site.service.refills


def test_without_keys_to_hand_out_random_ones_do(site: Site) -> None:
    page = site.open("pool=0")
    site.service.keys_left = 0
    ordered(page, 1)
    assert site.service.refills == [{"count": 10}]
    assert re.fullmatch(r"\d+(-\d+){3}", site.service.orders()[0][0])


def test_a_page_from_the_cache_does_not_take_its_keys_again(site: Site) -> None:
    page = site.open("pool=4")
    ordered(page, 1)
    page.go_back()
    ordered(page, 2, "coffee")
    first, second = (key for key, _ in site.service.orders())
    page.go_back()
    handed_out = page.locator("[data-semel-keys]").text_content() or ""
    assert first in handed_out
    assert second not in handed_out


def test_a_key_that_was_refused_at_first_sight_is_not_used_again(site: Site) -> None:
    page = site.open("answer=json&field=" + "x" * 300)
    order(page)
    expect(page.locator("#answer")).to_contain_text("key-invalid")
    press(page)
    expect(page.locator("#answer")).to_have_text('{"order":1}')
    assert len(site.service.orders()[0][0]) < 100


def test_without_a_secure_context_keys_are_drawn_all_the_same(site: Site) -> None:
    page = site.page
    page.goto(f"http://shop.test:{site.proxy.port}/form")
    assert not page.evaluate("isSecureContext")
    ordered(page, 1)
    page.go_back()
    ordered(page, 1)
    assert items(site) == ["tea"]


def test_without_the_navigation_api_a_load_is_a_visit(site: Site) -> None:
    page = site.page
    page.add_init_script("delete window.navigation")
    site.open()
    assert page.evaluate("typeof navigation") == "undefined"
    ordered(page, 1)
    page.reload()
    page.go_back()
    ordered(page, 1)
    site.open()
    ordered(page, 2)
    assert items(site) == ["tea", "tea"]


def test_a_browser_too_old_for_it_sends_plain_forms(site: Site) -> None:
    page = site.page
    page.add_init_script("delete AbortSignal.any")
    site.open("field")
    assert page.evaluate("typeof semel") == "undefined"
    ordered(page, 1)
    assert site.service.orders()[0][0].startswith("field-")


def test_storage_holds_no_field_and_no_storage_is_no_obstacle(site: Site) -> None:
    page = site.open("answer=json")
    order(page, "peppermint")
    expect(page.locator("#answer")).to_have_text('{"order":1}')
    stored = page.evaluate("JSON.stringify(sessionStorage) + JSON.stringify(localStorage)")
    key = site.service.orders()[0][0]
    assert key in stored
    assert not re.search("hunter2|peppermint|lines", stored)

    page.add_init_script(
        "Object.defineProperty(window, 'sessionStorage', {get() { throw new Error('off') }})"
    )
    site.open("answer=json")
    for _ in range(2):
        order(page, "sage")
        expect(page.locator("#answer")).to_have_text('{"order":2}')
    assert items(site) == ["peppermint", "sage"]


# --- without JavaScript --------------------------------------------------------------------------


def test_without_javascript_the_hidden_field_is_the_key(site: Site) -> None:
    context = site.browser.new_context(java_script_enabled=False)
    page = site.open("field", context.new_page())
    ordered(page, 1)
    page.go_back()
    ordered(page, 1)
    page.go_back()
    order(page, "coffee")  # the field cannot change by itself: refused, and nothing is lost
    expect(page.locator("body")).to_contain_text("key-reused")
    context.close()
    [(key, item)] = site.service.orders()
    assert (key[:6], item) == ("field-", "tea")


def test_a_form_sent_before_the_script_was_there_is_the_same_order_after(site: Site) -> None:
    page = site.page
    page.route("**/semel.*.js", lambda route: route.abort())
    site.open("field")
    ordered(page, 1)
    page.unroute("**/semel.*.js")
    page.go_back()
    assert page.evaluate("typeof semel") == "object"
    ordered(page, 1)
    assert site.service.content_types == [FORM_BODY, FORM_BODY]
    assert items(site) == ["tea"]


def test_a_hidden_field_that_each_page_draws_anew_is_sent_as_the_key_in_use(site: Site) -> None:
    page = site.open("field")
    given = page.locator("[name=idempotency_key]").input_value()
    site.service.gate.clear()
    order(page)
    assert site.service.running.acquire(timeout=10)
    page.reload()
    assert page.locator("[name=idempotency_key]").input_value() != given
    order(page)
    site.service.gate.set()
    thanks(page, 1)
    assert site.service.orders() == [(given, "tea")]


def test_the_hidden_field_is_the_first_key_and_an_edit_takes_another(site: Site) -> None:
    page = site.open("field")
    given = page.locator("[name=idempotency_key]").input_value()
    ordered(page, 1)
    page.go_back()
    ordered(page, 2, "coffee")
    first, second = (key for key, _ in site.service.orders())
    assert first == given
    assert second != given


# --- content -------------------------------------------------------------------------------------


def test_a_file_cut_in_mid_upload_and_sent_again_is_a_replay_although_the_boundary_changed(
    site: Site, tmp_path: Path
) -> None:
    photo = tmp_path / "photo.bin"
    photo.write_bytes(bytes(range(256)) * 1000)
    page = site.open("file")
    site.proxy.cut_answer_to = b"POST /orders/"
    page.evaluate("semel.tries = 1")
    page.set_input_files("[name=file]", photo)
    order(page)
    state(page, "unknown")
    press(page)
    thanks(page, 1)
    page.go_back()
    page.set_input_files("[name=file]", photo)
    ordered(page, 1)
    assert len(set(site.service.content_types)) == 2
    assert items(site) == ["tea"]
    photo.write_bytes(b"another")
    page.go_back()
    page.set_input_files("[name=file]", photo)
    ordered(page, 2)
    assert items(site) == ["tea", "tea"]


def test_an_empty_file_field_is_the_same_content_each_time(site: Site) -> None:
    page = site.open("file")
    for _ in range(2):
        ordered(page, 1)
        page.go_back()
    assert items(site) == ["tea"]


def test_a_csrf_token_that_each_page_draws_anew_is_no_other_content(site: Site) -> None:
    page = site.open("csrf")
    token = page.locator("[name=csrf]").input_value()
    site.service.gate.clear()
    with page.expect_request("**/orders/*") as sent:
        order(page)
    assert sent.value.headers["x-csrf-token"] == token
    assert token not in (sent.value.post_data or "")
    assert site.service.running.acquire(timeout=10)
    page.reload()
    assert page.locator("[name=csrf]").input_value() != token
    order(page)
    site.service.gate.set()
    thanks(page, 1)
    assert items(site) == ["tea"]


# --- answers -------------------------------------------------------------------------------------


def test_an_html_answer_is_shown_and_a_form_in_it_works(site: Site) -> None:
    page = site.open("answer=html")
    order(page, "nonsense")
    expect(page.get_by_text("No such item")).to_be_visible()
    site.screenshot("html-answer")
    order(page, "tea")
    thanks_here = page.locator("h1")
    expect(thanks_here).to_have_text("Order 1")
    assert items(site) == ["tea"]


@pytest.mark.parametrize(
    "headers",
    [
        {"content-disposition": 'attachment; filename="order.html"'},
        {"content-disposition": "Attachment"},
        {"content-security-policy": "sandbox"},
        {"content-security-policy": "default-src 'none'"},
        {"content-security-policy": CSP.format("mine") + ";sandbox"},
        {"content-security-policy": CSP.format("mine';sandbox;img-src 'self")},
        {"content-type": "application/xhtml+xml"},
        {"content-type": "text/plain; was=text/html"},
    ],
)
def test_html_that_a_browser_would_save_or_confine_is_left_to_the_page(
    site: Site, headers: dict[str, str]
) -> None:
    site.service.html_headers = headers
    page = site.open("answer=html")
    order(page)
    state(page, "answer")
    page.evaluate("fetch(location, {cache: 'force-cache'}).then(() => new Promise(setTimeout))")
    expect(page.locator("button", has_text="Order")).to_be_enabled()
    expect(page.locator("h1")).to_have_text("Order")
    assert items(site) == ["tea"]


def test_another_answer_is_an_event_and_the_same_form_is_the_same_order_until_a_reset(
    site: Site,
) -> None:
    page = site.open("answer=json")
    for _ in range(2):
        order(page)
        expect(page.locator("#answer")).to_have_text('{"order":1}')
        state(page, "answer")
        page.evaluate("document.querySelector('#answer').textContent = ''")
    page.locator("button", has_text="Start over").click()
    order(page)
    expect(page.locator("#answer")).to_have_text('{"order":2}')
    site.screenshot("json-answer")
    assert items(site) == ["tea", "tea"]


def test_a_redirect_is_fetched_twice_and_loses_its_fragment(site: Site) -> None:
    """Limits of fetch that the guide names."""
    page = site.open()
    ordered(page, 1)
    assert site.service.thanked == 2
    assert "#" not in page.url


def test_html_that_trusted_types_forbid_to_show_leaves_the_form_usable(site: Site) -> None:
    page = site.open("answer=html&trusted")
    order(page)
    state(page, "answer")
    expect(page.locator("button", has_text="Order")).to_be_enabled()
    assert items(site) == ["tea"]


def test_a_page_that_takes_the_answer_itself_is_left_to_it(site: Site) -> None:
    page = site.open("mine")
    order(page)
    state(page, "answer")
    expect(page.locator("button", has_text="Order")).to_be_enabled()
    assert "/form" in page.url
    assert items(site) == ["tea"]


def test_a_key_used_for_something_else_is_told_and_not_resent(site: Site) -> None:
    page = site.open("field=taken&answer=json")
    used = Client(site.proxy.port).send("/orders/json", key="taken", body=b'{"item": "salt"}')
    assert used.status == 201
    order(page)
    state(page, "unknown")
    last = site.log()[-1]
    assert (last["status"], last["problem"].rsplit("/", 1)[1]) == (422, "key-reused")
    assert names(site) == ["send", "unknown"]
    assert items(site) == ["salt"]


def test_an_expired_key_is_told_and_not_resent(site: Site) -> None:
    page = site.open("answer=short")
    order(page)
    expect(page.locator("#answer")).to_have_text('{"order":1}')
    press(page)
    state(page, "unknown")
    assert site.log()[-1]["problem"].endswith("key-expired")
    assert names(site) == ["send", "answer", "send", "unknown"]
    assert items(site) == ["tea"]


def test_a_parked_operation_is_told_and_not_resent(site: Site) -> None:
    page = site.open("answer=parked")
    order(page)
    state(page, "unknown")
    assert site.log()[-1]["problem"].endswith("outcome-unknown")
    assert names(site)[-2:] == ["send", "unknown"]
    assert items(site) == []


def test_a_redirect_to_another_origin_cannot_be_followed_and_ends_as_unknown(site: Site) -> None:
    """A limit of fetch: the guide says to answer with JSON and let the page go there."""
    site.service.elsewhere = f"http://shop.test:{site.proxy.port}"
    page = site.open("answer=elsewhere")
    page.evaluate("semel.tries = 2")
    order(page)
    state(page, "unknown")
    assert items(site) == ["tea"]


def test_a_form_under_a_marked_element_and_with_fields_named_as_its_own_properties(
    site: Site,
) -> None:
    page = site.open()
    page.evaluate(
        "for (const name of ['action', 'method', 'id', 'elements', 'enctype', 'target', 'name'])"
        " document.forms[0].append(Object.assign(document.createElement('input'), {name}));"
        "document.forms[0].removeAttribute('data-semel');"
        "document.body.setAttribute('data-semel', '')"
    )
    ordered(page, 1)
    assert items(site) == ["tea"]
    assert not site.service.orders()[0][0].startswith("field-")


def test_another_button_is_another_operation_to_another_place(site: Site) -> None:
    page = site.open()
    page.evaluate(
        "document.forms[0].append(Object.assign(document.createElement('button'),"
        " {textContent: 'Express', name: 'how', value: 'fast', formAction: '/orders/json'}))"
    )
    for _ in range(2):
        page.locator("#answer").evaluate("shown => shown.textContent = ''")
        fill(page)
        page.locator("button", has_text="Express").click()
        expect(page.locator("#answer")).to_have_text('{"order":1}')
        expect(page.locator("#order")).not_to_have_attribute("aria-busy", "true")
    press(page)
    thanks(page, 2)
    assert items(site) == ["tea", "tea"]


@pytest.mark.parametrize(
    "change",
    [
        "form.removeAttribute('data-semel')",
        "form.target = '_self'",
        "form.addEventListener('submit', (event) => event.preventDefault())",
    ],
)
def test_what_is_not_its_own_is_left_alone(site: Site, change: str) -> None:
    page = site.open("field")
    page.evaluate(f"{{ const form = document.forms[0]; {change} }}")
    fill(page)
    press(page)
    if "preventDefault" in change:
        assert site.service.content_types == []
    else:
        thanks(page, 1)
    assert "semel /orders" not in str(page.evaluate("JSON.stringify(sessionStorage)"))


def test_it_runs_under_a_strict_content_security_policy(site: Site) -> None:
    heard: list[Any] = []
    site.page.on("console", lambda message: heard.append(message.text))
    site.page.on("pageerror", lambda error: heard.append(error))
    page = site.open("pool=1&answer=html")
    order(page)
    expect(page.locator("h1")).to_have_text("Order 1")
    assert [said for said in heard if "[DOM]" not in str(said)] == []
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: '1'}))"
    )
    assert "script-src" in str(heard[-1])
