"""Cases about callers: a key belongs to the caller who sent it."""

from __future__ import annotations

from semel.checker.case import case
from semel.checker.cases.needs import NO_AUTH, OTHER_CALLER
from semel.checker.exchange import Steps, WireResponse
from semel.checker.scene import Scene
from semel.checker.steps import begin, send, watched
from semel.checker.verdict import (
    AUTHENTICATE,
    SECURITY,
    CaseVerdict,
    NotRun,
    fault,
    passed,
    warning,
)


@case(
    "Another caller with the same key never gets this caller's response",
    SECURITY,
    effects=2,
    needs=(OTHER_CALLER,),
)
def other_caller(scene: Scene) -> Steps[CaseVerdict]:
    def both() -> Steps[tuple[WireResponse, WireResponse]]:
        first = yield from begin(scene)
        answer = yield from send(scene.request(headers=scene.target.other_headers))
        return first, answer

    (first, answer), effects = yield from watched(both())
    if answer.status in (401, 403):
        raise NotRun(
            f"the other caller is refused ({answer}); --other-auth has to be good for this request"
        )
    if answer.same(first) and effects != 2:
        return fault("another caller got the first caller's response")
    if answer.status >= 500 or not answer.status:
        return fault(f"another caller with the same key was answered {answer}")
    if answer.refused:
        return warning(
            f"{answer}: another caller learns that the key is in use, and can take keys away"
        )
    if effects == 1:
        return fault(f"another caller was answered {answer}, and nothing was done for it")
    return passed("an operation of its own")


@case(
    "A repeat without credentials is refused", AUTHENTICATE, SECURITY, effects=1, needs=(NO_AUTH,)
)
def no_auth(scene: Scene) -> Steps[CaseVerdict]:
    """A replay is authorised like any other request."""
    if scene.target.bare_headers == scene.target.headers:
        raise NotRun("no --header holds a credential to leave out")
    first = yield from begin(scene)
    answer = yield from send(scene.request(headers=scene.target.bare_headers))
    if answer.done or (len(first.body) > 1 and first.body in answer.body):
        return fault(f"without credentials the stored response is handed out ({answer})")
    if answer.status in (401, 403):
        return passed(f"{answer}")
    if answer.refused:
        return warning(f"{answer}; without credentials 401 is to be expected")
    return fault(f"a repeat without credentials was answered {answer}, not 401")
