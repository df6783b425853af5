"""Statements of handlers: what each may change that outlives its transaction.

A pooled session has to come to the next operation as it came to this one. To reset it costs the
server a tenth of a millisecond, so it is done where a statement may have changed something: by its
own words, or by a function that it calls. What is said before it is known to be harmless is looked
at once and remembered.
"""

from __future__ import annotations

import re
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final

import psycopg
from psycopg._preparing import Prepare, PrepareManager


class Effect(IntEnum):
    """What a statement may do, apart from its work in the transaction."""

    NONE = 0
    SESSION = 1
    """It may change settings, or leave a lock, a temporary table, a channel or a cursor."""
    BEYOND = 2
    """It may leave what a reset does not find: the session has to end."""
    TRANSACTION = 3
    """It begins or ends a transaction."""


_NOISE: Final = re.compile(
    rb"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\$((?:[A-Za-z_]\w*)?)\$.*?\$\1\$|\"(?:[^\"]|\"\")*\"",
    re.DOTALL,
)
_LOCAL_CONFIG: Final = re.compile(
    rb"\bset_config\s*\(\s*'\w+\.[\w.]+'\s*,[^()]*,\s*true\s*\)", re.IGNORECASE
)
"""`set_config('app.tenant', …, true)`: until the end of the transaction only."""
_CALL: Final = re.compile(rb"([a-z_][\w$.]*)\s*\(")
_TARGET: Final = re.compile(rb"\binto\s+[\w$.]+\s*(?=\()")
_WORD: Final = re.compile(rb"[a-z_]+")
_TEMPORARY: Final = re.compile(rb"\btemp(?:orary)?\b")
_LOCAL: Final = re.compile(
    rb"set\s+(?:constraints|transaction|local\s+(?!session\b|role\b|search_path\b|schema\b))"
)
"""What SET does not outlive its transaction; where the record is written is seen to as well."""
_WORK: Final = frozenset(
    b"select with insert update delete merge values table savepoint release lock fetch move close"
    b" notify show explain truncate rollback".split()
)
_SESSION: Final = frozenset(
    b"set reset listen unlisten declare create alter drop call do copy comment grant revoke analyze"
    b" refresh reindex security import cluster checkpoint vacuum".split()
)
_TRANSACTION: Final = frozenset(b"commit end abort rollback begin start".split())
_HARMLESS: Final = frozenset(
    b"values into in any all some exists array row cast as on and or not using where select from by"
    b" when then else case over filter within group conflict key with returning set limit offset"
    b" between materialized partition lateral union except intersect is distinct interval"
    b" count sum min max avg coalesce nullif greatest least lower upper length char_length trim"
    b" ltrim rtrim btrim substr substring replace concat concat_ws left right lpad rpad position"
    b" split_part to_char to_date to_number to_timestamp to_tsvector plainto_tsquery abs ceil floor"
    b" round trunc mod power random now clock_timestamp statement_timestamp transaction_timestamp"
    b" date_trunc date_part extract age make_interval current_setting current_timestamp"
    b" gen_random_uuid uuid_generate_v4 md5 sha256 encode decode nextval currval array_agg"
    b" string_agg bool_and bool_or unnest generate_series row_number rank dense_rank lag lead"
    b" first_value last_value json_build_object jsonb_build_object json_build_array"
    b" jsonb_build_array json_agg jsonb_agg json_object_agg jsonb_object_agg to_json to_jsonb"
    b" jsonb_set jsonb_array_elements jsonb_array_elements_text jsonb_each jsonb_each_text"
    b" row_to_json array_length array_append array_remove cardinality pg_advisory_xact_lock"
    b" pg_advisory_xact_lock_shared pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared"
    b" hashtext hashtextextended pg_sleep pg_notify char varchar numeric decimal timestamp"
    b" timestamptz time bit".split()
)
_LONG: Final = 4096
"""Bytes of a statement beyond which only its beginning is looked at."""


def effect(text: bytes) -> Effect:
    """Return what a query's text, of one statement or several, may do. The gravest is told."""
    return _judged(text) if len(text) <= _LONG else max(_judge(text[:_LONG]), Effect.SESSION)


def _judge(text: bytes) -> Effect:
    plain = _NOISE.sub(_plain, _LOCAL_CONFIG.sub(b" ", text)).lower()
    gravest = Effect.NONE if b"\\'" not in text else Effect.SESSION
    for part in plain.split(b";"):
        if part := part.strip():
            gravest = max(gravest, _of_one(part))
    return gravest


_judged = lru_cache(1024)(_judge)


def _plain(found: re.Match[bytes]) -> bytes:
    first = found[0][:1]
    return b"q" if first == b'"' else b" " if first in b"-/" else b" '' "


def _of_one(part: bytes) -> Effect:
    found = _WORD.match(part.lstrip(b"( \t\r\n"))
    word = found[0] if found is not None else b""
    if word in _TRANSACTION and not re.match(rb"rollback(?:\s+\w+)?\s+to\b", part):
        return Effect.TRANSACTION
    if word == b"prepare" and part.split()[1:2] == [b"transaction"]:
        return Effect.TRANSACTION
    if word == b"set" and _LOCAL.match(part):
        return Effect.NONE
    if word in _SESSION:
        return Effect.SESSION
    if word not in _WORK:
        return Effect.BEYOND
    calls = set(_CALL.findall(_TARGET.sub(b"into ", part)))
    return Effect.SESSION if calls - _HARMLESS or _TEMPORARY.search(part) else Effect.NONE


REFUSED: Final = (
    "the transaction belongs to the operation and commits with its response: leave BEGIN, COMMIT"
    " and ROLLBACK out; connection.rollback() undoes what was written,"
    " `with connection.transaction():` is a savepoint"
)


class SessionStatements(PrepareManager):
    """The statements of one session: which are prepared, and what they may have changed."""

    def __init__(self) -> None:
        super().__init__()
        self.effect = Effect.NONE

    def note(self, text: bytes) -> None:
        """Note a statement. Raises `psycopg.ProgrammingError` where it would end the transaction.

        One that was carried out all the same is noted, and its operation is not to commit.
        """
        found = effect(text)
        if found > self.effect:
            if found is Effect.TRANSACTION:
                raise psycopg.ProgrammingError(REFUSED)
            self.effect = found

    def get(self, query: Any, prepare: bool | None = None) -> tuple[Prepare, bytes]:
        """Return how psycopg is to send a query, which has been looked at before it is sent."""
        self.note(query.query)
        return super().get(query, prepare)

    def maybe_add_to_cache(self, query: Any, prep: Prepare, name: bytes) -> Any:
        """As psycopg's. It comes after a query, and is the first to see those of `ClientCursor`."""
        try:
            self.note(query.query)
        except psycopg.ProgrammingError:
            self.effect = Effect.TRANSACTION
            raise
        return super().maybe_add_to_cache(query, prep, name)

    def for_the_next(self, threshold: int | None) -> None:
        """Forget what the last operation has set."""
        self.effect = Effect.NONE
        self.prepare_threshold = threshold
        self.prepared_max = PrepareManager.prepared_max
