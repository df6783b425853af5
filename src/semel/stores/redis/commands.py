"""Translation between store commands and calls of Lua scripts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from semel.core.commands import (
    Claim,
    Claimed,
    Complete,
    ForgetStep,
    Found,
    Lookup,
    Park,
    Recorded,
    RecordStep,
    Release,
    Renew,
    Reply,
    Settle,
    Steps,
    StoreCommand,
    Takeover,
)
from semel.core.record import COLUMN_TYPES, encode_response, read_row
from semel.stores.redis import lua


class ScriptCall(NamedTuple):
    """A script, the record's key, and the script's arguments."""

    script: str
    key: bytes
    arguments: tuple[Any, ...] = ()


class LuaScript:
    """A script's text, and its SHA-1, by which the server keeps it."""

    def __init__(self, name: str) -> None:
        self.text = lua.load(name)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


SCRIPTS: Final = {
    name: LuaScript(name)
    for name in (
        *("lookup", "claim", "takeover", "complete", "release", "park", "renew", "settle"),
        *("remembered", "steps", "record_step", "forget_step"),
    )
}


def calls(command: StoreCommand) -> list[ScriptCall]:
    """Return the calls that carry a command out, all of one script."""
    match command:
        case Lookup(key):
            return [ScriptCall("lookup", key)]
        case Claim(key, fingerprint, lease, owner, request):
            return [ScriptCall("claim", key, (owner, fingerprint, lease, _optional(request)))]
        case Takeover(key, token, fingerprint, lease, owner, expired, request):
            rest = (lease, owner, int(expired), _optional(request))
            return [ScriptCall("takeover", key, (token, fingerprint, *rest))]
        case Complete(key, token, response, expires, tombstone):
            answer = encode_response(response)
            return [ScriptCall("complete", key, (token, answer, expires, tombstone))]
        case Release(key, token):
            return [ScriptCall("release", key, (token,))]
        case Park(key, token, reason, lapsed):
            return [ScriptCall("park", key, (token, reason, int(lapsed)))]
        case Renew(claims, lease):
            return [ScriptCall("renew", key, (token, lease)) for key, token in claims]
        case Settle(key, token, response, expires, tombstone):
            settled = None if response is None else encode_response(response)
            return [ScriptCall("settle", key, (token, _optional(settled), expires, tombstone))]
        case Steps(key):
            return [ScriptCall("steps", key)]
        case RecordStep(key, token, name, result, keep):
            return [ScriptCall("record_step", key, (token, name, _optional(result), keep))]
        case ForgetStep(key, token, name):
            return [ScriptCall("forget_step", key, (token, name))]
    raise AssertionError(command)


def message(prefix: str, now: str, together: Sequence[ScriptCall]) -> list[Any]:
    """Return the arguments of one evaluation of a script that carries out all of these calls."""
    parts: list[Any] = [4 * len(together)]
    for call in together:
        name = f"{prefix}:{{{call.key.hex()}}}"  # the braces: one slot of a cluster
        parts += (name, f"{name}:answer", f"{name}:steps", f"{name}:request")
    parts += (now, len(together[0].arguments))
    for call in together:
        parts += call.arguments
    return parts


def _optional(data: bytes | None) -> bytes:
    """A script cannot be given nothing: a mark tells empty bytes from none."""
    return b"" if data is None else b"=" + data


def reply(command: StoreCommand, told: list[Any]) -> Reply:
    """Return a command's reply from those of its script. Raises `UnreadableRecord`."""
    first = told[0] if told else None
    match command:
        case Lookup(key):
            return _found(key, first) if first else None
        case Claim(key) | Takeover(key):
            if not first:
                return None
            return Claimed(int(first[0]), int(first[1])) if len(first) == 2 else _found(key, first)
        case Renew(claims):
            return frozenset(t for (_, t), kept in zip(claims, told, strict=True) if not kept)
        case Steps():
            pairs = first or []
            return {pairs[n].decode(): pairs[n + 1] for n in range(0, len(pairs), 2)}
        case RecordStep():
            return Recorded(first[0] if first else None) if first is not None else None
    return bool(first)


_READERS: Final = tuple(
    bytes.decode if COLUMN_TYPES[column] is str else COLUMN_TYPES[column] for column in lua.READ
)


def _found(key: bytes, told: list[Any]) -> Found:
    """Return what a script says of a record: Redis keeps everything as text."""
    *values, now = told
    read = zip(_READERS, values, strict=True)
    row = [None if value is None else reader(value) for reader, value in read]
    return Found(read_row((key, *row)), float(now))
