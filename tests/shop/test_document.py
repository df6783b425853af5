"""The shop does what its OpenAPI document says: schemathesis sends what it allows, and what not."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from tests.shop.conftest import shop_on

EXAMPLES = 25


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with shop_on("sqlite", tmp_path_factory.mktemp("shop")) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def document(url: str) -> Any:
    made = schemathesis.openapi.from_url(f"{url}/openapi.json")
    # No document can say which state an order is in: that If-Match names another one is as right
    # an answer to a valid request as that there is no such order (404).
    accepted = made.config.checks.positive_data_acceptance
    accepted.expected_statuses = [*accepted.expected_statuses, "412"]
    return made


def with_key(case: Any, url: str) -> None:
    """Draw its key as the document asks for it: new for each operation, issued for payments.

    What a request that is meant to be wrong has for a key stays as it is.
    """
    if case.meta.generation.mode.is_positive and "Idempotency-Key" in (case.headers or {}):
        key = str(uuid.uuid4())
        if case.operation.path == "/payments":
            key = requests.post(f"{url}/idempotency-keys", timeout=20).json()["keys"][0]
        case.headers["Idempotency-Key"] = key


OPERATIONS = (
    ("POST", "/charges"),
    ("GET", "/charges"),
    ("GET", "/charges/count"),
    ("POST", "/payments"),
    ("POST", "/orders"),
    ("GET", "/orders/{number}"),
    ("PUT", "/orders/{number}"),
    ("DELETE", "/orders/{number}"),
    ("POST", "/subscriptions"),
    ("POST", "/subscriptions/cancel"),
    ("POST", "/accounts"),
    ("POST", "/sign-up"),
    ("POST", "/files"),
    ("GET", "/health"),
    ("POST", "/idempotency-keys"),
)


def test_every_operation_of_the_document_is_tried(document: Any) -> None:
    every = {(one.ok().method.upper(), one.ok().path) for one in document.get_all_operations()}
    assert every == set(OPERATIONS)


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_the_shop_is_as_its_document_says(
    document: Any, url: str, method: str, path: str, mode: GenerationMode
) -> None:
    operation = document[path][method]
    if mode is GenerationMode.NEGATIVE and not (operation.body or any(operation.iter_parameters())):
        return  # there is nothing about it that can be wrong

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        with_key(case, url)
        case.call_and_validate(allow_redirects=False)

    ask()
