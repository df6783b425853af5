"""Planted bugs of the store: what its statements could forget."""

from __future__ import annotations

from typing import Any

from lab.sim.claims_by_transaction import Held, OpeningTable
from lab.sim.mutants.planting import Mutant, in_the_table, patched, together, whatever_token
from semel.core import commands as c
from semel.core.record import State
from semel.stores.memory import MemoryTable


def _claim_over(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    if type(command) is c.Claim:
        record = table.records.get(command.key)
        if record is not None and record.state is State.IN_FLIGHT and int(now * 1000) % 4 == 0:
            del table.records[command.key]
    return original()


def _eager_takeover(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    if type(command) is c.Takeover:
        record = table.records.get(command.key)
        if record is not None and record.state is State.IN_FLIGHT:
            table.records[command.key] = record._replace(lease_until=now)
    return original()


def _takeover_keeps_token(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    reply = original()
    if type(command) is c.Takeover and type(reply) is c.Claimed:
        record = table.records[command.key]
        table.records[command.key] = record._replace(token=command.token)
        return reply._replace(token=command.token)
    return reply


def _takes_over_what_is_there(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    record = table.records.get(getattr(command, "key", b""))
    if type(command) is c.Takeover and record is not None:
        return original(command._replace(expired=record.state is not State.IN_FLIGHT))
    return original()


def _tokens_start_anew(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    if type(command) is c.Claim and command.key not in table.records:
        table._last_token = 0
    return original()


def _sweep_in_flight(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    if type(command) is c.Sweep:
        for key, record in list(table.records.items()):
            if record.state is State.IN_FLIGHT:
                del table.records[key]
    return original()


def _sweep_too_early(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    if type(command) is c.Sweep:
        for key, record in list(table.records.items()):
            if record.state is State.COMPLETED:
                del table.records[key]
    return original()


def _renew_resurrects(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    if type(command) is c.Renew:
        for key, token in command.claims:
            record = table.records.get(key)
            if record is not None and record.state is State.IN_FLIGHT:
                table.records[key] = record._replace(token=token)
    return original()


def _overwrites(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    if type(command) is c.Complete:
        record = table.records.get(command.key)
        if record is not None and record.state is State.COMPLETED:
            table.records[command.key] = record._replace(response=command.response)
            return True
    return original()


def _loses_the_write(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    if type(command) is c.Complete and int(now * 1000) % 5 == 0:
        return True
    return original()


def _holds_nothing(original: Any) -> Any:
    """A transaction that is a claim keeps nobody else out."""

    def open(self: OpeningTable, command: c.Open, *where: Any) -> Any:
        self.held.pop(command.key, None)
        return original(self, command, *where)

    return open


def _overwrites_a_record(original: Any) -> Any:
    """A commit takes the place of whatever record is there, held or not."""

    def finish(self: OpeningTable, command: c.Complete, now: float) -> Any:
        self.records.pop(command.key, None)
        if command.key not in self.held:
            asked = c.Open(command.key, b"\x01want", b"")
            self.held[command.key] = Held("", "", command.token, asked)
        self.held[command.key] = self.held[command.key]._replace(token=command.token)
        return original(self, command, now)

    return finish


STORE_MUTANTS: tuple[Mutant, ...] = (
    Mutant("complete-without-token", "whoever completes is believed", whatever_token(c.Complete)),
    Mutant("release-without-token", "anybody can give a claim back", whatever_token(c.Release)),
    Mutant("check-then-insert", "a claim overwrites a claim", in_the_table(_claim_over)),
    Mutant("takeover-of-the-living", "the lease is not looked at", in_the_table(_eager_takeover)),
    Mutant(
        "takeover-keeps-token", "a takeover does not raise it", in_the_table(_takeover_keeps_token)
    ),
    Mutant(
        "takeover-of-what-is-there",
        "what has completed and expired since is run again",
        in_the_table(_takes_over_what_is_there),
    ),
    Mutant(
        "tokens-start-anew", "tokens come again after a release", in_the_table(_tokens_start_anew)
    ),
    Mutant("sweep-in-flight", "the sweeper deletes claims", in_the_table(_sweep_in_flight)),
    Mutant("sweep-too-early", "answers go before their expiry", in_the_table(_sweep_too_early)),
    Mutant(
        "renew-resurrects", "a renewal takes a lost claim back", in_the_table(_renew_resurrects)
    ),
    Mutant("overwritten", "a completed record is completed again", in_the_table(_overwrites)),
    Mutant("lost-write", "a completion is confirmed and not made", in_the_table(_loses_the_write)),
    Mutant(
        "open-holds-nothing",
        "two transactions claim one key",
        together(
            patched(OpeningTable, "open", _holds_nothing),
            patched(OpeningTable, "finish", _overwrites_a_record),
        ),
    ),
)
