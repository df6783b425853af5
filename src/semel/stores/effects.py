"""Effects of handlers' statements that outlive their transaction, judged by their text.

A session of a pool has to come to the next operation as it came to this one; to reset it costs
time, so it is done where a statement may have changed something. What a statement does inside a
function, a trigger or a default of the database's cannot be seen.
"""

from __future__ import annotations

import re
from enum import IntEnum
from functools import lru_cache
from typing import Final

__all__ = ["SessionEffect", "effect_of"]


class SessionEffect(IntEnum):
    """What a statement may do, apart from its work in the transaction; the gravest is last."""

    NONE = 0
    PERHAPS = 1
    """It calls what is not known: that may change the session."""
    PLACE = 2
    """It changes, until the end of the transaction, who writes the record, or where."""
    SESSION = 3
    """It changes settings, or leaves a lock, a temporary table, a channel or a cursor."""
    BEYOND = 4
    """It may leave what no reset finds: the session has to end."""
    TRANSACTION = 5
    """It begins or ends a transaction."""


_NOISE: Final = re.compile(
    r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\$((?:[A-Za-z_]\w*)?)\$.*?\$\1\$"
    r'|"(?:[^"]|"")*"|`[^`]*`',
    re.DOTALL,
)
_LOCAL_CONFIG: Final = re.compile(
    r"\bset_config\s*\(\s*'\w+\.[\w.]+'\s*,[^()]*,\s*true\s*\)", re.IGNORECASE
)
"""`set_config('app.tenant', …, true)`: until the end of the transaction only."""
_CALL: Final = re.compile(r"([a-z_][\w$.]*)\s*\(")
_TARGET: Final = re.compile(r"\binto\s+[\w$.]+\s*(?=\()")
_WORD: Final = re.compile(r"[a-z_]+")
_BACK_TO: Final = re.compile(r"rollback(?:\s+\w+)?\s+to\b")
_LEAVES: Final = re.compile(
    r"\btemp(?:orary)?\b|\bwith\s+hold\b|\bset_config\s*\(|\bpg_(?:try_)?advisory_lock(?:_shared)?\s*\("
    r"|\bget_lock\s*\(|\bsetseed\s*\(|@\w+\s*:="
)
_LOCAL: Final = re.compile(r"set\s+(?:constraints|transaction|local)\b")
"""What of SET does not outlive its transaction."""
_PLACE: Final = re.compile(r"set\s+local\s+(?:session|role|search_path|schema)\b")
_ASKS: Final = re.compile(
    r"pragma\s+(?:\w+\.)?(?:\w+$|(?:table|index|foreign_key)_\w+\s*\(|integrity_check|quick_check)"
)
_WORK: Final = frozenset(
    [
        *("delete", "explain", "fetch", "insert", "merge", "move", "notify", "release", "replace"),
        *("rollback", "savepoint", "select", "show", "table", "truncate", "update", "values"),
        *("close", "with"),
    ]
)
_PERHAPS: Final = frozenset(
    [
        *("alter", "analyze", "call", "cluster", "comment", "copy", "create", "declare", "do"),
        *("drop", "grant", "import", "lock", "refresh", "reindex", "revoke", "security", "vacuum"),
    ]
)
_SESSION: Final = frozenset(["listen", "reset", "set", "unlisten", "use"])
_TRANSACTION: Final = frozenset(["abort", "begin", "commit", "end", "rollback", "start"])
_HARMLESS: Final = frozenset(
    [
        *("values", "into", "in", "any", "all", "some", "exists", "array", "row", "cast"),
        *("as", "on", "and", "or", "not", "using", "where", "select", "from", "by", "when"),
        *("then", "else", "case", "over", "filter", "within", "group", "conflict", "key"),
        *("with", "returning", "set", "limit", "offset", "between", "materialized"),
        *("partition", "lateral", "union", "except", "intersect", "is", "distinct"),
        *("interval", "count", "sum", "min", "max", "avg", "coalesce", "nullif"),
        *("greatest", "least", "lower", "upper", "length", "char_length", "trim", "ltrim"),
        *("rtrim", "btrim", "substr", "substring", "replace", "concat", "concat_ws"),
        *("left", "right", "lpad", "rpad", "position", "split_part", "to_char", "to_date"),
        *("to_number", "to_timestamp", "to_tsvector", "plainto_tsquery", "abs", "ceil"),
        *("floor", "round", "trunc", "mod", "power", "random", "now", "clock_timestamp"),
        *("statement_timestamp", "transaction_timestamp", "date_trunc", "date_part"),
        *("extract", "age", "make_interval", "current_setting", "current_timestamp"),
        *("gen_random_uuid", "uuid_generate_v4", "md5", "sha256", "encode", "decode"),
        *("nextval", "currval", "array_agg", "string_agg", "bool_and", "bool_or", "unnest"),
        *("generate_series", "row_number", "rank", "dense_rank", "lag", "lead"),
        *("first_value", "last_value", "json_build_object", "jsonb_build_object"),
        *("json_build_array", "jsonb_build_array", "json_agg", "jsonb_agg"),
        *("json_object_agg", "jsonb_object_agg", "to_json", "to_jsonb", "jsonb_set"),
        *("jsonb_array_elements", "jsonb_array_elements_text", "jsonb_each"),
        *("jsonb_each_text", "row_to_json", "array_length", "array_append", "array_remove"),
        *("cardinality", "pg_advisory_xact_lock", "pg_advisory_xact_lock_shared"),
        *("pg_try_advisory_xact_lock", "pg_try_advisory_xact_lock_shared", "hashtext"),
        *("hashtextextended", "pg_sleep", "pg_notify", "char", "varchar", "numeric"),
        *("decimal", "timestamp", "timestamptz", "time", "bit"),
    ]
)
_LONG: Final = 4096
"""Characters of a statement beyond which only its beginning is looked at."""


@lru_cache(1024)
def _judged(text: str | bytes) -> SessionEffect:
    plain = text.decode("latin-1") if isinstance(text, bytes) else text
    gravest = SessionEffect.PERHAPS if "\\'" in plain else SessionEffect.NONE
    plain = _NOISE.sub(_without_noise, _LOCAL_CONFIG.sub(" ", plain)).lower()
    for part in plain.split(";"):
        gravest = max(gravest, _of_one(part.strip()))
    return gravest


def effect_of(text: str | bytes) -> SessionEffect:
    """Return what a query's text, of one statement or several, may do; the gravest of them."""
    if len(text) <= _LONG:
        return _judged(text)
    return max(_judged(text[:_LONG]), SessionEffect.PERHAPS)


def _without_noise(found: re.Match[str]) -> str:
    first = found[0][0]
    return "q" if first in '"`' else " " if first in "-/" else " '' "


def _of_one(part: str) -> SessionEffect:
    found = _WORD.match(part.lstrip("( \t\r\n"))
    word = found[0] if found is not None else ""
    if not word:
        return SessionEffect.PERHAPS if part else SessionEffect.NONE
    if word in _TRANSACTION and not _BACK_TO.match(part):
        return SessionEffect.TRANSACTION
    if word == "prepare" and part.split()[1:2] == ["transaction"]:
        return SessionEffect.TRANSACTION
    if word == "pragma":
        return SessionEffect.NONE if _ASKS.match(part) else SessionEffect.SESSION
    if word == "set" and _LOCAL.match(part):
        return SessionEffect.PLACE if _PLACE.match(part) else SessionEffect.NONE
    if word in _SESSION or _LEAVES.search(part) or re.match(r"lock\s+tables?\s", part):
        return SessionEffect.SESSION
    if word in _WORK:
        unknown = set(_CALL.findall(_TARGET.sub("into ", part))) - _HARMLESS
        return SessionEffect.PERHAPS if unknown else SessionEffect.NONE
    return SessionEffect.PERHAPS if word in _PERHAPS else SessionEffect.BEYOND
