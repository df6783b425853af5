"""`semel.fetch` and `semel.key` in a real Chromium."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Error, Page, expect

from tests.browser.conftest import Site

END_OF_ORDER = b"tea"
"""Cut after this, the order is made and only its answer is lost."""


@pytest.fixture
def page(site: Site) -> Page:
    return site.open("pool=5")


def call(page: Page, script: str) -> Any:
    """Run the body of an asynchronous function in the page."""
    return page.evaluate(
        "async () => { const order = (more) => semel.fetch('/orders/json', {method: 'POST',"
        " headers: {'content-type': 'application/json'}, body: JSON.stringify({item: 'tea'}),"
        f" ...more}}); {script} }}"
    )


def test_each_call_is_an_operation_under_a_key_of_the_page(site: Site, page: Page) -> None:
    script = (
        "const got = [await order(), await order()]; return Promise.all(got.map(a => a.json()))"
    )
    assert call(page, script) == [{"order": 1}, {"order": 2}]
    keys = {key for key, _ in site.service.orders()}
    assert len(keys) == 2
    assert all(key.startswith("issued-") for key in keys)


def test_calls_at_the_same_time_take_keys_of_their_own_beyond_the_pool(
    site: Site, page: Page
) -> None:
    script = "const got = await Promise.all(Array.from({length: 9}, order)); return got.length"
    assert call(page, script) == 9
    assert len({key for key, _ in site.service.orders()}) == 9
    assert len(site.service.refills) == 1


def test_a_lost_answer_is_fetched_again_under_the_same_key(site: Site, page: Page) -> None:
    site.proxy.cut_answer_to = END_OF_ORDER
    script = (
        "const got = await order(); return [got.status, got.headers.get('idempotent-replayed')]"
    )
    assert call(page, script) == [201, "true"]
    assert [line["name"] for line in site.log()] == ["send", "wait", "send"]
    assert len(site.service.orders()) == 1


def test_a_key_of_the_callers_own_is_used_as_it_is(site: Site, page: Page) -> None:
    headers = "{headers: {'idempotency-key': key, 'content-type': 'application/json'}}"
    script = f"const key = await semel.key(); await order({headers});"
    script += f" const again = await order({headers}); return [key, await again.json()]"
    key, answer = call(page, script)
    assert answer == {"order": 1}
    assert site.service.orders() == [(key, "tea")]


def test_a_form_with_a_file_can_be_sent_by_fetch_and_again(site: Site, page: Page) -> None:
    site.proxy.cut_answer_to = END_OF_ORDER
    script = (
        "const body = new FormData(); body.set('item', 'tea');"
        " body.set('file', new File(['x'.repeat(100)], 'x.txt'));"
        " const got = await semel.fetch('/orders/json', {method: 'POST', body}); return got.json()"
    )
    assert call(page, script) == {"order": 1}
    assert len(site.service.orders()) == 1


def test_an_unknown_outcome_is_an_event_and_the_networks_error(site: Site, page: Page) -> None:
    site.proxy.cut_answer_to = END_OF_ORDER
    with pytest.raises(Error, match="Failed to fetch"):
        call(page, "semel.tries = 1; await order()")
    assert [line["name"] for line in site.log()] == ["send", "unknown"]
    assert len(site.service.orders()) == 1


def test_a_refusal_is_returned_once_the_tries_are_used_up(site: Site, page: Page) -> None:
    site.service.refusals.extend([(503, {"retry-after": "1"})] * 2)
    assert call(page, "semel.tries = 2; return (await order()).status") == 503
    assert [line["name"] for line in site.log()] == ["send", "wait", "send", "unknown"]
    assert site.service.orders() == []


def test_an_abort_ends_it_even_while_offline(site: Site, page: Page) -> None:
    page.context.set_offline(True)
    page.evaluate(
        "void (async () => { window.stop = new AbortController(); try {"
        " await semel.fetch('/orders/json', {method: 'POST', body: '1', signal: stop.signal}) }"
        " catch (error) { document.querySelector('#answer').textContent = error.name } })()"
    )
    expect(page.locator("#log")).to_contain_text("offline")
    page.evaluate("stop.abort()")
    expect(page.locator("#answer")).to_have_text("AbortError")
    page.context.set_offline(False)
    assert site.service.content_types == []


def test_what_can_take_no_key_is_sent_once(site: Site, page: Page) -> None:
    site.proxy.cut_answer_to = END_OF_ORDER
    with pytest.raises(Error, match="Failed to fetch"):
        call(page, "await order({mode: 'no-cors'})")
    assert [line["name"] for line in site.log()] == ["send", "unknown"]
