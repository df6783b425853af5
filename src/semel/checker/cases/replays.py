"""Cases about a request that is sent again after its response."""

from __future__ import annotations

from typing import Final

from semel.checker.case import case
from semel.checker.exchange import Steps
from semel.checker.scene import Scene
from semel.checker.steps import begin, persist, ran, send, twice, watched
from semel.checker.verdict import (
    CACHED_POST,
    FIRST,
    NOT_IDEMPOTENT,
    RETRY,
    STRIPE,
    UNIQUE,
    CaseVerdict,
    NotRun,
    fault,
    passed,
    warning,
)

MARKERS: Final = (
    "Idempotent-Replayed",
    "Idempotency-Replayed",
    "X-Idempotent-Replayed",
    "Idempotent-Replay",
    "X-Cache-Lookup",
)
"""Headers by which APIs and libraries mark a replay."""
KEPT: Final = ("Content-Type", "Content-Language", "Location", "ETag", "Last-Modified", "Link")
"""Headers that belong to the result and not to the moment: without them it is another response."""


@case("The request works, and has one effect", FIRST, effects=1)
def first_request(scene: Scene) -> Steps[CaseVerdict]:
    """The precondition of all other cases."""
    answer, effects = yield from watched(send(scene.request()))
    if not answer.done:
        return fault(f"the request was answered {answer}, not 2xx: is it complete?")
    if effects is not None and effects != 1:
        return fault(f"one request changed the count of effects by {effects}: is --effects right?")
    return passed(f"{answer}" + (", one effect" if effects == 1 else "; effects are not counted"))


@case("A repeat is not run again", RETRY, STRIPE, NOT_IDEMPOTENT, effects=1)
def replay_runs_once(scene: Scene) -> Steps[CaseVerdict]:
    """The core of idempotency."""
    (first, again), effects = yield from watched(twice(scene))
    if ran(effects, first, again):
        return fault(
            f"two requests with one key had {effects} effects"
            if effects is not None
            else "two requests with one key were answered differently, as two runs are"
        )
    if not again.done:
        return fault(
            f"the first was answered {first}, its repeat {again}: the result is not to be had"
        )
    if effects == 0:
        return fault("a request that was answered as done had no effect")
    return passed("one effect" if effects else "the same response (effects are not counted)")


@case("A repeat has the first status", RETRY, STRIPE, effects=1)
def replay_status(scene: Scene) -> Steps[CaseVerdict]:
    first, again = yield from twice(scene)
    if again.status != first.status:
        return fault(f"the first was answered {first}, its repeat {again}")
    return passed(f"both {first}")


@case("A repeat has the first body, to the byte", RETRY, STRIPE, effects=1)
def replay_body(scene: Scene) -> Steps[CaseVerdict]:
    first, again = yield from twice(scene)
    if again.body != first.body:
        return fault("the repeat has another body")
    return passed(f"{len(first.body)} bytes")


@case("A repeat has the first headers", RETRY, effects=1)
def replay_headers(scene: Scene) -> Steps[CaseVerdict]:
    first, again = yield from twice(scene)
    for name in KEPT:
        if again.all(name) != first.all(name):
            was, now = (", ".join(one.all(name)) or "missing" for one in (first, again))
            return fault(f"{name} was {was}, and is {now} in the repeat")
    own = {n.lower() for n, _ in first.headers if n.lower().startswith("x-")}
    lost = sorted(name for name in own if not again.all(name))
    if lost:
        return warning(f"missing in the repeat: {', '.join(lost)}")
    if first.all("Set-Cookie") and again.all("Set-Cookie") == first.all("Set-Cookie"):
        return warning("Set-Cookie is replayed: a session may be issued anew to whoever repeats")
    return passed("those of the result are kept")


@case("A repeat is marked as one", STRIPE, effects=1)
def replay_marked(scene: Scene) -> Steps[CaseVerdict]:
    """No source asks for it; Stripe and most libraries do it."""
    first, again = yield from twice(scene)
    for name in MARKERS:
        if again.header(name) is not None and again.header(name) != first.header(name):
            return passed(f"{name}: {again.header(name)}")
    return warning("nothing in the repeat says that it is one (usual: Idempotent-Replayed: true)")


@case("Another key is another operation", UNIQUE, effects=2)
def another_key(scene: Scene) -> Steps[CaseVerdict]:
    """Keys tell operations apart, even where the requests are equal."""
    if "{{" in scene.target.body:
        raise NotRun("the body has placeholders: its requests are never equal")

    def two() -> Steps[bool]:
        yield from begin(scene)
        other = scene.request(keys=[scene.field(scene.another().key)])
        second = yield from persist(scene, other)
        return second.done

    done, effects = yield from watched(two())
    if not done or (effects is not None and effects < 2):
        return fault("the same request under another key was not run: the key is not what counts")
    if effects is not None and effects > 2:
        return fault(f"two operations had {effects} effects")
    return passed("two keys, two operations")


@case("Neither response nor repeat may be cached by others", CACHED_POST, effects=1)
def replay_not_cached(scene: Scene) -> Steps[CaseVerdict]:
    for answer in (yield from twice(scene)):
        said = ", ".join(answer.all("Cache-Control")).lower()
        if "no-store" not in said and ("public" in said or "s-maxage" in said):
            return warning(f"Cache-Control: {said} lets shared caches keep one caller's response")
    return passed("no explicit freshness for shared caches")
