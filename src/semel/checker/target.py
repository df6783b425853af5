"""The target of an examination: the request that has an effect, and what is known of the API."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

__all__ = ["BadTarget", "Effects", "Target"]

MOST_AT_ONCE: Final = 50
"""More duplicates than this at once would be a load test."""
SECRET_HEADERS: Final = re.compile(r"authorization|cookie|api-?key|token|secret|signature", re.I)

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class BadTarget(ValueError):
    """The target is not described well; the message names the option and what to give."""


@dataclass(frozen=True)
class Effects:
    """How effects are counted: a GET whose response holds a number, or a list to be measured."""

    path: str
    member: tuple[str, ...] = ()
    """Names (and indexes) that lead from the response's root to the number or list."""

    @classmethod
    def parse(cls, text: str) -> Effects:
        """Read `GET /charges/count` or `GET /charges/count data.total`."""
        words = text.split()
        if len(words) not in (2, 3) or words[0] != "GET" or not words[1].startswith("/"):
            raise BadTarget(f"--effects: give 'GET /path' or 'GET /path member.name', not {text!r}")
        return cls(words[1], tuple(words[2].split(".")) if len(words) == 3 else ())

    def read(self, body: bytes) -> int:
        """Return the number of effects that a response tells. Raises `BadTarget`."""
        try:
            value = json.loads(body)
            for name in self.member:
                value = value[int(name)] if isinstance(value, list) else value[name]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            told = body[:80].decode("latin-1")
            raise BadTarget(
                f"--effects: {'.'.join(self.member) or 'a number'} is not in {told!r}"
            ) from None
        if isinstance(value, dict) and not self.member and len(value) == 1:
            value = next(iter(value.values()))
        if isinstance(value, list):
            return len(value)
        if type(value) is int:
            return value
        raise BadTarget(
            f"--effects: {json.dumps(value)[:80]} is neither a whole number nor a list; name the"
            " member that is, as in --effects 'GET /path data.total'"
        )


@dataclass(frozen=True)
class Target:
    """An API and one of its operations.

    Only `url` has to be given. What is None or empty leaves the cases out that need it.
    """

    url: str
    method: str = "POST"
    body: str = "{}"
    """`{{uuid}}` and `{{n}}` (1, 2, 3 …) are new for each operation."""
    headers: tuple[tuple[str, bytes], ...] = ()
    secrets: tuple[tuple[str, str], ...] = ()
    """Variable and value of what came from the environment: never shown."""
    effects: Effects | None = None
    other_body: str | None = None
    """Another body that the operation takes; else one is made of `body`."""
    other_path: str | None = None
    other_method: str | None = None
    other_caller: tuple[tuple[str, bytes], ...] = ()
    """Headers that name another caller, in place of those of the same name."""
    no_auth: bool = False
    """Whether a request without the headers that hold secrets has to be refused."""
    failing_body: str | None = None
    """A body to which the operation responds with an error, without an effect."""
    keys_path: str | None = None
    """Where the API issues keys."""
    required: bool | None = None
    """Whether the key is required; None: not known."""
    quoted: bool = False
    """Whether keys are sent as the draft writes them, in quotes."""
    expires: float | None = None
    """Seconds after which the API says that a key expires."""
    together: int = 10
    """How many duplicates are sent at once."""
    patience: float = 10.0
    """Seconds for which a request is sent again while the response is "come back"."""
    kills: int = 0
    """How often the server is killed with a request in flight; 0: it is not ours to kill."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadTarget(f"give a URL such as http://127.0.0.1:8000/charges, not {self.url!r}")
        if parts.username or parts.password:
            raise BadTarget(
                "the URL holds a password; give it with --header 'Authorization: $NAME'"
            )
        try:
            self.url.encode("ascii")
            parts.port  # noqa: B018 - raises where it is none
        except ValueError as error:
            raise BadTarget(f"the URL {self.url!r} cannot be used: {error}") from None
        for option, name in (("--method", self.method), ("--other-method", self.other_method)):
            if name is not None and not _TOKEN.fullmatch(name):
                raise BadTarget(f"{option}: {name!r} is no method")
        for option, path in (("--other-path", self.other_path), ("--keys-url", self.keys_path)):
            if path is not None and not re.fullmatch(r"/[!-~]*", path):
                raise BadTarget(
                    f"{option}: give a path such as /refunds on the same server, not {path!r}"
                )
        if not 2 <= self.together <= MOST_AT_ONCE:
            raise BadTarget(f"--concurrency: give 2 to {MOST_AT_ONCE}, not {self.together}")
        for option, seconds in (("--patience", self.patience), ("--expires", self.expires)):
            if seconds is not None and not 0 < seconds <= 3600:
                raise BadTarget(f"{option}: give more than 0 and at most 3600 seconds")

    @property
    def path(self) -> str:
        """The path and the query."""
        parts = urlsplit(self.url)
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    @property
    def other_headers(self) -> tuple[tuple[str, bytes], ...]:
        """The headers of the other caller."""
        theirs = {name.lower() for name, _ in self.other_caller}
        return (*(h for h in self.headers if h[0].lower() not in theirs), *self.other_caller)

    @property
    def bare_headers(self) -> tuple[tuple[str, bytes], ...]:
        """The headers without credentials: without what came from the environment."""
        values = [value.encode() for _, value in self.secrets]
        return tuple((n, v) for n, v in self.headers if not any(secret in v for secret in values))

    def other(self, body: bytes, number: int) -> bytes | None:
        """Return another body for the same operation; None where none can be made."""
        if self.other_body is not None:
            return render(self.other_body, number)
        if _PLACEHOLDER.search(self.body):
            return render(self.body, number)
        return _changed(body)

    def masked(self, text: str) -> str:
        """Return a text without secrets: each one's variable stands in its place."""
        for name, value in self.secrets:
            text = text.replace(value, f"${name}")
        return text


def render(template: str, number: int) -> bytes:
    """Fill a body's placeholders in. Raises `BadTarget` for one that is not known."""

    def value(match: re.Match[str]) -> str:
        if match[1] == "uuid":
            return str(uuid.uuid4())
        if match[1] == "n":
            return str(number)
        raise BadTarget(f"--body: {match[0]} is not known; there are {{{{uuid}}}} and {{{{n}}}}")

    return _PLACEHOLDER.sub(value, template).encode()


def _changed(body: bytes) -> bytes | None:
    """Return a JSON object with one of its values changed, within its kind."""
    try:
        members = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(members, dict):
        return None
    for name, value in members.items():
        if type(value) in (int, float):
            return json.dumps({**members, name: value + 1}).encode()
    for name, value in members.items():
        if type(value) is str:
            return json.dumps({**members, name: value + "x"}).encode()
    return None


def read_header(
    option: str, text: str, environment: Mapping[str, str]
) -> tuple[tuple[str, bytes], list[tuple[str, str]]]:
    """Read `Name: value`, where `$NAME` stands for a variable of the environment.

    Returns the header, and the variables with their values, which are secrets. Raises `BadTarget`
    for a variable that is not set, and for a credential that is given in the open: every process of
    the machine can read arguments.
    """
    name, colon, value = text.partition(":")
    if not colon or not _TOKEN.fullmatch(name):
        raise BadTarget(f"{option}: give 'Name: value', not {name!r}")
    secrets: list[tuple[str, str]] = []

    def variable(match: re.Match[str]) -> str:
        wanted = match[1] or match[2]
        if not environment.get(wanted):
            raise BadTarget(f"{option}: the environment variable {wanted} is not set")
        secrets.append((wanted, environment[wanted]))
        return environment[wanted]

    filled = _VARIABLE.sub(variable, value.strip())
    if SECRET_HEADERS.search(name) and not secrets:
        raise BadTarget(
            f"{option}: put the value of {name} into an environment variable and write"
            f" '{name}: $NAME'; arguments can be read by everybody on this machine"
        )
    if not re.fullmatch(r"[\t -~]*", filled):
        raise BadTarget(f"{option}: the value of {name} has characters that a header cannot carry")
    return (name, filled.encode()), secrets
