"""What each command is as a call of a script, and what the script tells."""

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
from semel.core.record import Record, State, decode_response, encode_response
from semel.stores.redis import lua


class Call(NamedTuple):
    """A script, the record's key, and the script's arguments."""

    script: str
    key: bytes
    arguments: tuple[Any, ...] = ()


class Script:
    """A script's text, and the name under which the server keeps it."""

    def __init__(self, name: str) -> None:
        self.text = lua.load(name)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


SCRIPTS: Final = {
    name: Script(name)
    for name in (
        *("lookup", "claim", "takeover", "complete", "release", "park", "renew", "settle"),
        *("remembered", "steps", "record_step", "forget_step"),
    )
}


def calls(command: StoreCommand) -> list[Call]:
    """Return the calls that carry a command out, all of one script."""
    match command:
        case Lookup(key):
            return [Call("lookup", key)]
        case Claim(key, fingerprint, lease, owner, request):
            return [Call("claim", key, (owner, fingerprint, lease, _optional(request)))]
        case Takeover(key, token, fingerprint, lease, owner, expired, request):
            rest = (lease, owner, int(expired), _optional(request))
            return [Call("takeover", key, (token, fingerprint, *rest))]
        case Complete(key, token, response, expires, tombstone):
            answer = encode_response(response)
            return [Call("complete", key, (token, answer, expires, tombstone))]
        case Release(key, token):
            return [Call("release", key, (token,))]
        case Park(key, token, reason, lapsed):
            return [Call("park", key, (token, reason, int(lapsed)))]
        case Renew(claims, lease):
            return [Call("renew", key, (token, lease)) for key, token in claims]
        case Settle(key, token, response, expires, tombstone):
            settled = None if response is None else encode_response(response)
            return [Call("settle", key, (token, _optional(settled), expires, tombstone))]
        case Steps(key):
            return [Call("steps", key)]
        case RecordStep(key, token, name, result, keep):
            return [Call("record_step", key, (token, name, _optional(result), keep))]
        case ForgetStep(key, token, name):
            return [Call("forget_step", key, (token, name))]
    raise AssertionError(command)


def message(prefix: str, now: str, together: Sequence[Call]) -> list[Any]:
    """Return what follows the script's name where calls of one script go together."""
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
    """Return what a command is told. Raises `UnreadableRecord`."""
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


def _found(key: bytes, told: list[Any]) -> Found:
    state, token, owner, attempt, fingerprint, lease, due, purge, reason, answer, now = told
    kind = State(int(state))
    record = Record(
        key,
        kind,
        int(token),
        owner,
        int(attempt),
        fingerprint,
        float(lease),
        float(due or 0),
        float(purge or 0),
        decode_response(answer) if answer is not None else None,
        reason.decode() if reason is not None and kind is State.PARKED else None,
    )
    return Found(record, float(now))
