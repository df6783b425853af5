"""The needs of cases: options without which a case cannot be run on a target."""

from __future__ import annotations

from semel.checker.case import Need
from semel.checker.target import Target

__all__ = [
    "COMMAND",
    "COUNTED",
    "EXPIRES",
    "FAILING",
    "ISSUED",
    "NO_AUTH",
    "OTHER_CALLER",
    "OTHER_METHOD",
    "OTHER_PATH",
    "a_body",
    "option",
]


def option(field: str, flag: str) -> Need:
    """Return the need for an option that names what the API has."""

    def need(target: Target) -> str | None:
        return None if getattr(target, field) else f"give {flag}"

    return need


COUNTED = option("effects", "--effects")
OTHER_PATH = option("other_path", "--other-path")
OTHER_METHOD = option("other_method", "--other-method")
OTHER_CALLER = option("other_caller", "--other-auth")
NO_AUTH = option("no_auth", "--no-auth")
FAILING = option("failing_body", "--failing-body")
ISSUED = option("keys_path", "--keys-url")
EXPIRES = option("expires", "--expires")
COMMAND = option("kills", "--command")


def a_body(target: Target) -> str | None:
    """Return why there is no body that can be cut, sent slowly, or changed; None: there is."""
    return None if len(target.body) > 1 else "give --body"
