"""Preconditions: If-Match and its kin, read and evaluated (RFC 9110 section 13)."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NoReturn

from semel.core import problems
from semel.core.problems import Problem
from semel.core.record import Response
from semel.web.conditional.dates import parse_date
from semel.web.conditional.etags import ANY, parse_tags, strong_match, weak_match
from semel.web.conditional.validators import Fields, Validators, header_fields

READS: Final = frozenset({"GET", "HEAD"})
_UNCONDITIONAL: Final = frozenset({"CONNECT", "OPTIONS", "TRACE"})
_NAMES: Final = (b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since")

Current = Validators | str | None
"""A resource's state: its validators, its tag alone, or None where it does not exist."""


class Verdict(enum.Enum):
    """The result of evaluating preconditions; the value is the status where it is refused."""

    PROCEED = 200
    NOT_MODIFIED = 304
    FAILED = 412
    REQUIRED = 428


class NotMet(Exception):
    """A precondition decides the answer, and the method is not to be performed: 304, 400, 412, 428.

    `init_app` of `semel.web.fastapi` and `semel.web.flask` turns it into that answer. Elsewhere
    catch it and send `response()`.
    """

    def __init__(self, answer: Problem | Response) -> None:
        super().__init__(
            f"{answer.status}: the answer is in response(); where nothing catches this, call"
            " init_app, or register the adapter's not_met for NotMet"
        )
        self.answer = answer

    @property
    def status(self) -> int:
        """The status of the answer."""
        return self.answer.status

    def response(self, problem_base: str = problems.BASE) -> Response:
        """Return the answer to send."""
        return (
            self.answer if isinstance(self.answer, Response) else self.answer.response(problem_base)
        )


@dataclass(frozen=True, slots=True)
class Preconditions:
    """The preconditions of one request. None: the header was not sent, or is to be ignored."""

    method: str
    if_match: tuple[str, ...] | None = None
    """Tags, or `("*",)`."""
    if_none_match: tuple[str, ...] | None = None
    """Tags, or `("*",)`."""
    if_modified_since: datetime | None = None
    if_unmodified_since: datetime | None = None

    @classmethod
    def from_headers(cls, method: str, headers: Iterable[tuple[bytes, bytes]]) -> Preconditions:
        """Read them from a request's headers, as in an ASGI scope.

        A date that is none is ignored, as RFC 9110 (13.1.3, 13.1.4) demands. It leaves open what
        becomes of tags that are none. Here: in the If-None-Match of GET and HEAD they are ignored
        and the whole is sent, which is never wrong; else `NotMet` with 400 `precondition-invalid`
        is raised, for nothing is to be written under a condition that could not be read.
        """
        found: dict[bytes, str] = {}
        for name, value in headers:
            if (lowered := name.lower()) in _NAMES:
                text = value.decode("latin-1")
                found[lowered] = f"{found[lowered]}, {text}" if lowered in found else text
        since, unchanged_since = found.get(_NAMES[2]), found.get(_NAMES[3])
        return cls(
            method,
            _tags(found, _NAMES[0]),
            _tags(found, _NAMES[1], lenient=method in READS),
            parse_date(since) if since is not None else None,
            parse_date(unchanged_since) if unchanged_since is not None else None,
        )

    @classmethod
    def from_environ(cls, environ: Mapping[str, Any]) -> Preconditions:
        """The same from a WSGI environ."""
        names = {name: "HTTP_" + name.decode().upper().replace("-", "_") for name in _NAMES}
        headers = [(n, environ[k].encode("latin-1")) for n, k in names.items() if k in environ]
        return cls.from_headers(environ["REQUEST_METHOD"], headers)

    @property
    def given(self) -> bool:
        """Whether the method is to be performed on one state of the resource only.

        False: whatever is there may be replaced.
        """
        return any(
            asked is not None
            for asked in (self.if_match, self.if_none_match, self.if_unmodified_since)
        )

    def require(
        self,
        current: Current,
        *,
        require_match: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Go on only where `evaluate` says so; else raise `NotMet` with the answer.

        `headers` are those of the 200 that a 304 stands for; it takes the ones it needs.
        """
        verdict = evaluate(self, current, require_match=require_match)
        if verdict is Verdict.NOT_MODIFIED:
            validators = _validators(current)
            assert validators is not None
            raise NotMet(_not_modified(validators, header_fields(headers or {})))
        if verdict is Verdict.FAILED:
            self.overtaken()
        if verdict is Verdict.REQUIRED:
            raise NotMet(problems.PRECONDITION_REQUIRED)

    def overtaken(self) -> NoReturn:
        """Raise `NotMet` with 412: a conditional statement found no row, another was faster."""
        raise NotMet(problems.PRECONDITION_FAILED)


def evaluate(asked: Preconditions, current: Current, *, require_match: bool = False) -> Verdict:
    """Say what the preconditions of a request make of it, in the order of RFC 9110 13.2.2.

    Call it when nothing but the preconditions can still refuse the request (13.2.1). A resource
    that does not exist is for GET and HEAD to answer themselves, with 404.

    `require_match=True` refuses a change that is sent without `If-Match` or `If-None-Match: *`
    (428, RFC 6585 section 3). `If-Match: *` counts: it overwrites on purpose.

    If-Range is not looked at: without ranges it has no effect.
    """
    method = asked.method
    if method in _UNCONDITIONAL:
        return Verdict.PROCEED
    reads = method in READS
    state = _validators(current)
    if reads and state is None:
        return Verdict.PROCEED
    if require_match and not reads and asked.if_match is None and asked.if_none_match != ANY:
        return Verdict.REQUIRED
    modified = state.last_modified if state is not None else None
    if asked.if_match is not None:
        if not _matches(asked.if_match, state, strong=True):
            return Verdict.FAILED
    elif asked.if_unmodified_since is not None and modified is not None:
        if modified > asked.if_unmodified_since:
            return Verdict.FAILED
    if asked.if_none_match is not None:
        if _matches(asked.if_none_match, state, strong=False):
            return Verdict.NOT_MODIFIED if reads else Verdict.FAILED
    elif reads and asked.if_modified_since is not None and modified is not None:
        if modified <= asked.if_modified_since:
            return Verdict.NOT_MODIFIED
    return Verdict.PROCEED


def _matches(tags: tuple[str, ...], state: Validators | None, *, strong: bool) -> bool:
    if state is None:
        return False
    if tags == ANY:
        return True
    if state.etag is None:
        return False
    match = strong_match if strong else weak_match
    return any(match(tag, state.etag) for tag in tags)


def _validators(current: Current) -> Validators | None:
    return Validators(current) if isinstance(current, str) else current


def _tags(found: dict[bytes, str], name: bytes, *, lenient: bool = False) -> tuple[str, ...] | None:
    if name not in found:
        return None
    try:
        return parse_tags(found[name])
    except ValueError as error:
        if lenient:
            return None
        field = name.decode().title()
        raise NotMet(problems.precondition_invalid(f"{field} is {error}")) from error


_OF_A_304: Final = (b"content-location", b"vary", b"cache-control", b"expires")


def _not_modified(validators: Validators, fields: Fields) -> Response:
    """Return the 304: what RFC 9110 section 15.4.5 demands of it, and no more."""
    own = validators.fields()
    return Response(304, (*own[:1], *(field for field in fields if field[0] in _OF_A_304)), b"")
