"""Cases about failures and expiry: how long a response stands."""

from __future__ import annotations

from semel.checker.case import case
from semel.checker.cases.needs import EXPIRES, FAILING
from semel.checker.exchange import Pause, Steps, WireResponse
from semel.checker.scene import Scene
from semel.checker.steps import begin, persist, send, watched
from semel.checker.target import render
from semel.checker.verdict import (
    EXPIRY,
    RETRY,
    STRIPE,
    CaseVerdict,
    NotRun,
    fault,
    passed,
    warning,
)


def _failing(scene: Scene) -> bytes:
    return render(scene.target.failing_body or "", 0)


@case(
    "A failure is repeated, or tried again, and never sticks",
    RETRY,
    STRIPE,
    effects=0,
    needs=(FAILING,),
)
def failure_repeated(scene: Scene) -> Steps[CaseVerdict]:
    """Stripe keeps what failed while it ran, 500 too, and not what failed validation."""
    request = scene.request(body=_failing(scene))

    def twice() -> Steps[tuple[WireResponse, WireResponse]]:
        first = yield from send(request)
        again = yield from send(request)
        return first, again

    (first, again), effects = yield from watched(twice())
    if first.done or not first.status:
        raise NotRun(f"--failing-body was answered {first}, not with an error")
    if effects:
        return fault(f"a request that failed ({first}) had {effects} effects")
    if again.status == first.status:
        return passed(f"{first}, and {again} again")
    if again.status in (409, 423, 425):
        last = yield from persist(scene, request)
        if last.status in (409, 423, 425):
            return fault(f"after {first} the key is stuck: {last} for {scene.target.patience:g} s")
        return warning(f"{first}; its retry had to wait, then {last}")
    return warning(f"{first}, and {again} on the retry")


@case(
    "After a failure the right request is run once or refused",
    RETRY,
    STRIPE,
    effects=1,
    needs=(FAILING,),
)
def failure_corrected(scene: Scene) -> Steps[CaseVerdict]:
    """Under the same key: whether the failure is kept is the API's choice."""
    failed = yield from send(scene.request(body=_failing(scene)))
    if failed.done or not failed.status:
        raise NotRun(f"--failing-body was answered {failed}, not with an error")
    answer, effects = yield from watched(send(scene.request()))
    if answer.done and effects == 0:
        return fault(f"the right request was answered {answer}, and nothing was done")
    if answer.status >= 500 or not answer.status:
        return fault(f"the right request was answered {answer}")
    if answer.refused and effects:
        return fault(f"the right request was refused ({answer}), and had an effect all the same")
    return passed(f"{answer}: " + ("run" if answer.done else "the failure's key is used up"))


@case("A response is kept as long as the API says", EXPIRY, effects=2, needs=(EXPIRES,))
def expiry(scene: Scene) -> Steps[CaseVerdict]:
    """After that a key is new, or refused: Stripe runs it, others refuse it for some time more."""
    lifetime = scene.target.expires or 0.0

    def within() -> Steps[tuple[WireResponse, WireResponse]]:
        first = yield from begin(scene)
        yield Pause(lifetime / 2)
        again = yield from send(scene.request())
        return first, again

    (first, again), effects = yield from watched(within())
    if not again.same(first) or (effects or 1) != 1:
        return fault(f"after half of {lifetime:g} s the response is gone: {again}")
    yield Pause(lifetime / 2 + 0.5)
    late, effects = yield from watched(send(scene.request()))
    if late.status >= 500 or not late.status:
        return fault(f"a key that has expired was answered {late}")
    if effects:
        return passed(f"{late}: run anew")
    if late.refused:
        if late.status in (409, 423, 425):
            last = yield from persist(scene)
            if last.status in (409, 423, 425):
                return warning(
                    f"{last} for ever: a key that has expired looks like one in progress"
                )
        return passed(f"{late}: refused")
    return warning(f"{late}: still kept after {lifetime:g} s" if late.same(first) else f"{late}")
