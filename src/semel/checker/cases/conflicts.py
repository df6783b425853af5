"""Cases about the same request sent again while the first is still being processed."""

from __future__ import annotations

from semel.checker.case import case
from semel.checker.cases.needs import a_body
from semel.checker.exchange import Manner, Steps, WireResponse
from semel.checker.scene import Scene
from semel.checker.steps import persist, together, watched
from semel.checker.verdict import (
    CONCURRENT,
    OUTSTANDING,
    RETRY,
    RETRY_AFTER,
    CaseVerdict,
    NotRun,
    fault,
    passed,
    warning,
)


def _many(scene: Scene) -> Steps[tuple[list[WireResponse], WireResponse]]:
    """Send duplicates at once, and then one more for as long as it takes."""
    answers = yield from together([scene.request()] * scene.target.together)
    last = yield from persist(scene)
    return answers, last


def _told(answers: list[WireResponse]) -> str:
    statuses = [str(answer) for answer in answers]
    return ", ".join(f"{statuses.count(one)} × {one}" for one in sorted(set(statuses)))


@case("Duplicates at the same moment are run once", CONCURRENT, effects=1)
def concurrent_duplicates(scene: Scene) -> Steps[CaseVerdict]:
    (answers, last), effects = yield from watched(_many(scene))
    done = [answer for answer in answers if answer.done]
    if effects is not None and effects > 1:
        return fault(f"{len(answers)} duplicates at once had {effects} effects")
    if not last.done:
        return fault(f"no result is to be had after {_told(answers)}: a retry is answered {last}")
    if any(not answer.same(last) for answer in done):
        return fault(f"duplicates were answered differently ({_told(answers)}; then {last})")
    if effects == 0:
        return fault("a request that was answered as done had no effect")
    return passed(_told(answers))


@case(
    "Duplicates at the same moment wait, or are told to come back",
    OUTSTANDING,
    RETRY_AFTER,
    effects=1,
)
def concurrent_answers(scene: Scene) -> Steps[CaseVerdict]:
    """409 at once is the draft's way; waiting for the first response serves clients better."""
    answers, _ = yield from _many(scene)
    lost = [answer for answer in answers if not answer.done]
    if broken := [answer for answer in lost if answer.status >= 500 and answer.status != 503]:
        return fault(f"duplicates were answered {_told(broken)}: a server's fault, not a conflict")
    if dropped := [answer for answer in lost if not answer.status]:
        return fault(f"duplicates were left without a response: {_told(dropped)}")
    if not lost:
        return passed("all waited for the first one's response")
    said = _told(lost)
    if any(answer.status not in (409, 423, 425, 429, 503) for answer in lost):
        return warning(f"{said}: the draft's status is 409")
    if any(answer.header("Retry-After") is None for answer in lost):
        return warning(f"{said}, without Retry-After: clients have to guess when to come back")
    if any(answer.status != 409 for answer in lost):
        return warning(f"{said}: the draft's status is 409")
    return passed(f"{said}, with Retry-After")


@case("A duplicate beside a slow upload is run once", CONCURRENT, RETRY, effects=1, needs=(a_body,))
def slow_request(scene: Scene) -> Steps[CaseVerdict]:
    """The first request's body takes a second; a retry overtakes it."""

    def both() -> Steps[tuple[list[WireResponse], WireResponse]]:
        answers = yield from together([scene.request(manner=Manner.SLOW), scene.request(after=0.4)])
        last = yield from persist(scene)
        return answers, last

    (answers, last), effects = yield from watched(both())
    if effects is not None and effects > 1:
        return fault(f"a slow upload and its retry had {effects} effects")
    if not last.done:
        raise NotRun(f"the last request was answered {last}")
    if any(answer.done and not answer.same(last) for answer in answers):
        return fault(f"they were answered differently: {_told([*answers, last])}")
    if effects == 0:
        return fault("a request that was answered as done had no effect")
    return passed(f"the slow one {answers[0]}, the quick one {answers[1]}")
