"""Planted bugs of steps (S10), and of what is said of an operation that has taken some."""

from __future__ import annotations

import dataclasses
from typing import Any

from lab.sim.mutants.planting import (
    Mutant,
    driven,
    in_the_steps,
    in_the_table,
    patched,
    together,
    whatever_token,
)
from semel.core import commands as c
from semel.core import ending, problems, steps
from semel.core.policy import Policy
from semel.stores.memory import MemoryTable


def _key_of_the_attempt(step: steps.Step, life: Any) -> Any:
    def asked(command: Any) -> Any:
        if type(command) in (steps.Call, steps.Probe):
            return command._replace(derived=f"{command.derived}/{step.token}")
        return command

    return driven(life, asked=asked)


def _recorded_in_memory(step: steps.Step, life: Any) -> Any:
    """The result is kept by the process alone."""

    def skipped(command: Any) -> Any:
        recorded = type(command) is c.RecordStep and command.result is not None
        return c.Recorded(command.result) if recorded else None

    return driven(life, skipped=skipped)


def _called_again(step: steps.Step, life: Any) -> Any:
    """What is recorded is not looked at."""
    return driven(life, heard=lambda command, value: {} if type(command) is c.Steps else value)


def _begun_is_nothing(step: steps.Step, life: Any) -> Any:
    """A step that was begun and never ended is called again, whatever `on_unknown` says."""

    def heard(command: Any, value: Any) -> Any:
        if type(command) is c.Steps:
            return {name: result for name, result in value.items() if result is not None}
        return value

    return driven(life, heard=heard)


def _wont_be_fenced(step: steps.Step, life: Any) -> Any:
    """One that has lost its claim goes on with its steps."""

    def heard(command: Any, value: Any) -> Any:
        if type(command) is c.RecordStep and value is None:
            return c.Recorded(command.result)
        return value

    return driven(life, heard=heard)


def _last_result_stays(table: MemoryTable, command: Any, now: float, original: Any) -> Any:
    if type(command) is c.RecordStep and command.result is not None:
        known = table.steps.get(command.key, {})
        if command.name in known and original() is not None:
            known[command.name] = (command.result, now + command.keep)
            return c.Recorded(command.result)
    return original()


def _keeps_steps_as_long_as_the_key(original: Any) -> Any:
    def until(policy: Policy, left: float, grace: Any) -> Policy:
        rules: Policy = original(policy, left, grace)
        seconds = dataclasses.replace(rules.seconds, keep_steps=rules.seconds.expires)
        rules.__dict__["seconds"] = seconds
        return rules

    return until


STEP_MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "step-key-of-the-attempt",
        "the derived key has the attempt in it",
        in_the_steps(_key_of_the_attempt),
    ),
    Mutant(
        "stale-step-recorded",
        "a step is recorded under any token",
        whatever_token(c.RecordStep),
    ),
    Mutant(
        "step-in-memory",
        "a step's result is not made durable",
        in_the_steps(_recorded_in_memory),
    ),
    Mutant("step-called-again", "what is recorded is not looked at", in_the_steps(_called_again)),
    Mutant(
        "begun-step-called", "a step is called again, not parked", in_the_steps(_begun_is_nothing)
    ),
    Mutant("step-not-fenced", "the fenced go on with their steps", in_the_steps(_wont_be_fenced)),
    Mutant(
        "last-result-stays",
        "a step's result is written over",
        together(in_the_table(_last_result_stays), in_the_steps(_called_again)),
    ),
    Mutant(
        "stepped-and-undone",
        "what took steps is reported undone",
        patched(ending, "_rolled_back", lambda original: lambda answer: problems.STORE_UNAVAILABLE),
    ),
    Mutant(
        "steps-go-with-their-key",
        "steps of an issued key are forgotten at its not-after",
        patched(Policy, "until", _keeps_steps_as_long_as_the_key),
    ),
)
