"""The cases, in the order in which they are run. To add one: write it in one of these modules.

@case("A repeat has the first status", RETRY, effects=1)
def replay_status(scene: Scene) -> Steps[CaseVerdict]:
    first, again = yield from twice(scene)
    if again.status != first.status:
        return fault(f"the first was answered {first}, its repeat {again}")
    return passed(f"both {first}")
"""

from semel.checker.case import Case
from semel.checker.cases import (
    callers,
    conflicts,
    crashes,
    keys,
    network,
    outcomes,
    problems,
    replays,
    requests,
)

__all__ = [
    "CASES",
    "callers",
    "conflicts",
    "crashes",
    "keys",
    "network",
    "outcomes",
    "problems",
    "replays",
    "requests",
]

MODULES = (replays, conflicts, requests, callers, keys, network, outcomes, problems, crashes)
CASES: tuple[Case, ...] = tuple(
    value for module in MODULES for value in vars(module).values() if isinstance(value, Case)
)
