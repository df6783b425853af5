"""Cases in which the server is killed (`kill -9`) and started again."""

from __future__ import annotations

from semel.checker.case import case
from semel.checker.cases.needs import COMMAND, COUNTED
from semel.checker.exchange import Pause, Steps, WireResponse
from semel.checker.scene import Scene
from semel.checker.steps import begin, count, crash, persist, watched
from semel.checker.verdict import (
    FIRST,
    NOT_IDEMPOTENT,
    RETRY,
    CaseVerdict,
    NotRun,
    fault,
    passed,
    warning,
)


@case("What was answered survives a kill", RETRY, FIRST, effects=1, needs=(COMMAND, COUNTED))
def killed_after_answer(scene: Scene) -> Steps[CaseVerdict]:
    """Killed as soon as the client has its response: the effect is there, and so is the record."""
    before = yield from count()
    first = yield from crash(scene.request(), None)
    if not first.done:
        raise NotRun(f"the request was answered {first}")
    after = yield from count()
    assert before is not None
    assert after is not None
    if after <= before:
        return fault(f"the request was answered {first}, and its effect is lost")
    again, effects = yield from watched(persist(scene))
    if effects:
        return fault("after the kill the same key was run a second time")
    if not again.same(first):
        return fault(f"the response was {first}, and is {again} after the kill")
    return passed("the effect and the response are there")


@case(
    "Killed at work, a retry finds one effect and one response",
    RETRY,
    NOT_IDEMPOTENT,
    effects=1,
    per_kill=1,
    needs=(COMMAND, COUNTED),
)
def killed_in_flight(scene: Scene) -> Steps[CaseVerdict]:
    """Killed at moments spread over the time that a request takes, again and again.

    Which moment does harm is luck: a pass is worth the number of kills. Effects: one a kill.
    """
    usual = yield from begin(scene)
    kills = scene.target.kills
    unknown = 0
    for number in range(kills):
        after = usual.seconds * (0.1 + 1.1 * number / kills)
        (cut, answer), effects = yield from watched(_killed(scene.another(), after))
        moment = f"killed {after * 1000:.0f} ms into a request of {usual.seconds * 1000:.0f} ms"
        assert effects is not None
        if effects > 1:
            return fault(f"{moment}, it had {effects} effects after the retry")
        if cut.done and effects < 1:
            return fault(f"{moment}, the effect that was answered ({cut}) is lost")
        if answer.done and effects < 1:
            return fault(f"{moment}, its retry was answered {answer}, and there is no effect")
        if cut.done and not cut.same(answer):
            return fault(f"{moment}, the response was {cut}, and is {answer} now")
        unknown += not answer.done
    if unknown:
        return warning(
            f"after {unknown} of {kills} kills retries were still refused when patience ended"
            f" ({scene.target.patience:g} s): stuck, parked, or a longer lease (--patience)"
        )
    return passed(f"{kills} kills, one effect and one response each")


def _killed(scene: Scene, after: float) -> Steps[tuple[WireResponse, WireResponse]]:
    cut = yield from crash(scene.request(), after)
    answer = yield from persist(scene)
    yield Pause(0.05)
    return cut, answer
