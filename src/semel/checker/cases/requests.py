"""Cases about the same key with another request."""

from __future__ import annotations

import json

from semel.checker.case import case
from semel.checker.cases.needs import OTHER_METHOD, OTHER_PATH
from semel.checker.exchange import Steps, WireRequest, WireResponse
from semel.checker.scene import Scene
from semel.checker.steps import begin, ran, send, watched
from semel.checker.verdict import (
    RETRY,
    REUSED,
    SECURITY,
    STRIPE,
    UNIQUE,
    CaseVerdict,
    NotRun,
    fault,
    passed,
    warning,
)


def _then(
    scene: Scene, other: WireRequest
) -> Steps[tuple[tuple[WireResponse, WireResponse], int | None]]:
    def both() -> Steps[tuple[WireResponse, WireResponse]]:
        first = yield from begin(scene)
        answer = yield from send(other)
        return first, answer

    return (yield from watched(both()))


@case("The same key with another body is refused", REUSED, UNIQUE, STRIPE, effects=1)
def other_body(scene: Scene) -> Steps[CaseVerdict]:
    """422 is the draft's status, 400 Stripe's. To return another request's response is a lie."""
    other = scene.other_body
    if other is None or other == scene.body:
        raise NotRun("give --other-body: none could be made of --body")
    (first, answer), effects = yield from _then(scene, scene.request(body=other))
    if effects is not None and effects > 1:
        return fault(f"another body under the same key was run ({answer})")
    if answer.same(first):
        return fault("another body under the same key got the first one's response")
    if answer.done:
        return fault(f"another body under the same key was answered {answer}")
    if answer.status >= 500 or not answer.status:
        return fault(f"another body under the same key was answered {answer}, not 422")
    if answer.status == 422:
        return passed("422")
    if answer.status == 400:
        return passed("400, as Stripe does; the draft says 422")
    return warning(f"{answer}; the draft says 422, Stripe 400")


@case("The same JSON in another order is not run again", RETRY, effects=1)
def same_json(scene: Scene) -> Steps[CaseVerdict]:
    """Whether that is the same request is the API's choice: a replay or a refusal, not a run."""
    try:
        members = json.loads(scene.body)
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict) or not members:
        raise NotRun("the body is no JSON object")
    other = json.dumps(dict(reversed(members.items())), indent=1).encode()
    (first, answer), effects = yield from _then(scene, scene.request(body=other))
    if ran(effects, first, answer):
        return fault("the same JSON, serialised anew, was run a second time")
    if answer.done:
        return passed("replayed: the API compares values")
    if answer.refused:
        return passed(
            f"{answer}: the API compares bytes; clients have to keep them for their retries"
        )
    return fault(f"the same JSON, serialised anew, was answered {answer}")


@case(
    "The same key on another path never gets this path's response",
    UNIQUE,
    SECURITY,
    effects=2,
    needs=(OTHER_PATH,),
)
def other_path(scene: Scene) -> Steps[CaseVerdict]:
    """To refuse it, and to take it for another operation, are both in use."""
    (first, answer), effects = yield from _then(
        scene, scene.request(path=scene.target.other_path or "")
    )
    return _elsewhere("path", first, answer, effects)


@case(
    "The same key with another method never gets this one's response",
    UNIQUE,
    effects=2,
    needs=(OTHER_METHOD,),
)
def other_method(scene: Scene) -> Steps[CaseVerdict]:
    (first, answer), effects = yield from _then(
        scene, scene.request(method=scene.target.other_method or "")
    )
    return _elsewhere("method", first, answer, effects)


def _elsewhere(
    what: str, first: WireResponse, answer: WireResponse, effects: int | None
) -> CaseVerdict:
    if answer.same(first) and (effects is None or effects < 2):
        return fault(f"another {what} got the first one's response")
    if answer.status >= 500 or not answer.status:
        return fault(f"another {what} was answered {answer}")
    if answer.done:
        return passed(f"{answer}: an operation of its own")
    return passed(f"{answer}: refused")
