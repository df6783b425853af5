"""Cases in which connections break."""

from __future__ import annotations

from semel.checker.case import case
from semel.checker.cases.needs import a_body
from semel.checker.exchange import Manner, Steps, WireResponse
from semel.checker.scene import Scene
from semel.checker.steps import begin, persist, send, watched
from semel.checker.verdict import (
    INCOMPLETE,
    NOT_IDEMPOTENT,
    RETRY,
    CaseVerdict,
    fault,
    passed,
)


def _broken(
    scene: Scene, manner: Manner, hold: float = 0.0
) -> Steps[tuple[WireResponse, WireResponse]]:
    yield from send(scene.request(manner=manner, hold=hold))
    answer = yield from persist(scene)
    again = yield from persist(scene)
    return answer, again


def _judged(
    answer: WireResponse, again: WireResponse, effects: int | None, patience: float
) -> CaseVerdict | None:
    if effects is not None and effects > 1:
        return fault(f"the request and its retries had {effects} effects")
    if not answer.done:
        return fault(f"for {patience:g} s its retries were answered {answer}: it never ends")
    if not again.same(answer):
        return fault(f"the retry was answered {answer}, the next one {again} and otherwise")
    if effects == 0:
        return fault(f"the retry was answered {answer}, and there is no effect")
    return None


@case("A lost response can be fetched by a retry", RETRY, NOT_IDEMPOTENT, effects=3)
def lost_answer(scene: Scene) -> Steps[CaseVerdict]:
    """The purpose of keys. Cut as soon as the request is sent, and again while it is processed."""
    usual = yield from begin(scene)
    for hold in (0.0, usual.seconds / 2):
        one = scene.another()
        (answer, last), effects = yield from watched(_broken(one, Manner.CUT, hold))
        said = _judged(answer, last, effects, scene.target.patience)
        if said is not None:
            when = f"cut {hold * 1000:.0f} ms after the last byte"
            return said._replace(said=f"{when}: {said.said}")
    return passed("one effect each, and the response")


@case("A request that broke off can be sent again", INCOMPLETE, RETRY, effects=1, needs=(a_body,))
def disconnect_mid_body(scene: Scene) -> Steps[CaseVerdict]:
    """Half of the body and no more: nothing may have happened, and the key must not be burnt."""
    (answer, last), effects = yield from watched(_broken(scene, Manner.HALF))
    if answer.refused and answer.status not in (409, 423, 425, 429):
        return fault(f"half a request burnt its key: the whole one is answered {answer}")
    said = _judged(answer, last, effects, scene.target.patience)
    return said or passed("one effect, and the response")
