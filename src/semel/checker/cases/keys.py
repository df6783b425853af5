"""Cases about keys: missing, wrong, long, quoted, doubled, or issued by the API itself."""

from __future__ import annotations

import json
from collections.abc import Sequence

from semel.checker.case import case
from semel.checker.cases.needs import COUNTED, ISSUED
from semel.checker.exchange import Steps, WireRequest, WireResponse
from semel.checker.scene import Scene
from semel.checker.steps import begin, persist, ran, send, twice, watched
from semel.checker.verdict import (
    CLIENT_ERROR,
    MISSING,
    SECURITY,
    STRIPE,
    SYNTAX,
    UNIQUE,
    CaseVerdict,
    NotRun,
    Outcome,
    fault,
    passed,
    warning,
)


def _pair(
    scene: Scene, keys: Sequence[bytes]
) -> Steps[tuple[tuple[WireResponse, WireResponse], int | None]]:
    def both() -> Steps[tuple[WireResponse, WireResponse]]:
        first = yield from send(scene.request(keys=keys))
        again = yield from send(scene.request(keys=keys))
        return first, again

    return (yield from watched(both()))


def _unusable(
    what: str, first: WireResponse, again: WireResponse, effects: int | None
) -> CaseVerdict | None:
    """Judge the treatment of a key that need not be accepted; None: it was accepted."""
    for answer in (first, again):
        if answer.status >= 500 or not answer.status:
            return fault(f"{what} was answered {answer}, not 400")
    if first.refused:
        if effects:
            return fault(f"{what} was refused ({first}), and had an effect all the same")
        return passed(f"{first}: refused")
    if ran(effects, first, again):
        return fault(f"{what} was taken, and gave no protection: its repeat was run again")
    if not again.done:
        return fault(f"{what} was taken ({first}), and its repeat was answered {again}")
    return None


@case("A request without a key", MISSING, effects=1)
def key_missing(scene: Scene) -> Steps[CaseVerdict]:
    """400 where a key is required; elsewhere it simply runs."""
    answer, effects = yield from watched(send(scene.request(keys=[])))
    if answer.status >= 500 or not answer.status:
        return fault(f"a request without a key was answered {answer}")
    if answer.done:
        if scene.target.required:
            return fault(f"the key is required, and a request without one was answered {answer}")
        return passed(f"{answer}: the key is optional here (say --required where it is not)")
    if effects:
        return fault(
            f"a request without a key was refused ({answer}), and had an effect all the same"
        )
    if answer.status == 400:
        return passed("400: the key is required")
    return warning(f"{answer}; the draft says 400")


@case("An empty key is refused", SECURITY, SYNTAX, effects=1)
def key_empty(scene: Scene) -> Steps[CaseVerdict]:
    """To take it for no key at all runs the requests of a client that believes itself protected."""
    (first, again), effects = yield from _pair(scene, [b""])
    said = _unusable("an empty key", first, again, effects)
    return said or warning(f"{first}: an empty key is a key like any other here, for everybody")


@case("A malformed key is no server error", SECURITY, CLIENT_ERROR, effects=3)
def key_malformed(scene: Scene) -> Steps[CaseVerdict]:
    """The draft's String is strict; many APIs take any text. Both are fine, a 5xx is not."""
    taken = []
    for value in (
        f'"{scene.key}'.encode(),
        f"{scene.key}-\xe9".encode("latin-1"),
        b"{}[];'\"--%00",
    ):
        (first, again), effects = yield from _pair(scene, [value])
        said = _unusable(f"the key {value.decode('latin-1')}", first, again, effects)
        if said is None:
            taken.append(value.decode("latin-1"))
        elif said.outcome is Outcome.FAULT:
            return said
    return passed(f"taken as they are: {', '.join(taken)}" if taken else "refused")


@case("A key of 255 characters works", STRIPE, effects=1)
def key_long(scene: Scene) -> Steps[CaseVerdict]:
    key = _padded(scene.key, 255)
    (first, again), effects = yield from _pair(scene, [scene.field(key)])
    said = _unusable("a key of 255 characters", first, again, effects)
    if said is None:
        return passed("replayed")
    if first.refused and not effects:
        return warning(f"{first}: keys are shorter here than Stripe's; is that published?")
    return said


@case("A key of 5,000 characters is refused, or kept whole", SECURITY, CLIENT_ERROR, effects=1)
def key_overlong(scene: Scene) -> Steps[CaseVerdict]:
    key = _padded(scene.key, 5000)
    (first, again), effects = yield from _pair(scene, [scene.field(key)])
    said = _unusable("a key of 5,000 characters", first, again, effects)
    return said or passed(f"{first}: taken, and replayed")


@case(
    "Keys that differ in their last character are different keys",
    UNIQUE,
    effects=6,
    needs=(COUNTED,),
)
def key_truncated(scene: Scene) -> Steps[CaseVerdict]:
    """A column or an index that is too short makes one key of two."""
    for length in (64, 255, 1000):
        stem = _padded(scene.key, length - 1)
        first = yield from send(scene.request(keys=[scene.field(stem + "a")]))
        if first.refused and length > 64:
            return passed(f"told apart up to the longest that is accepted (not {length})")
        if not first.done:
            raise NotRun(f"a key of {length} characters was answered {first}")
        said = yield from _two(scene, stem + "b", f"keys of {length} characters")
        if said is not None:
            return said
    return passed("told apart at 64, 255 and 1,000 characters")


@case("Keys that differ in case are different keys", UNIQUE, SYNTAX, effects=2, needs=(COUNTED,))
def key_case(scene: Scene) -> Steps[CaseVerdict]:
    """Strings of structured fields are case-sensitive; collations of databases may not be."""
    yield from begin(scene, scene.request(keys=[scene.field(scene.key + "-a")]))
    said = yield from _two(scene, scene.key + "-A", "keys that differ in case")
    return said or passed("told apart")


def _two(scene: Scene, key: str, what: str) -> Steps[CaseVerdict | None]:
    """Send the request under a key that has not been used; a verdict where it is not run."""
    other = scene.another()
    request = other.request(keys=[other.field(key)])
    answer, effects = yield from watched(send(request))
    if not answer.done:
        return fault(f"{what} are mixed up: a new one was answered {answer}")
    if effects == 0:
        return fault(f"{what} are mixed up: a new one got the other one's response")
    return None


def _padded(key: str, length: int) -> str:
    return key + "x" * (length - len(key))


@case("Two different keys in one request are refused", SYNTAX, effects=1)
def key_doubled(scene: Scene) -> Steps[CaseVerdict]:
    """A MUST NOT for clients; what a server does is open, but it cannot know which one is meant."""
    keys = [scene.field(scene.key), scene.field(scene.another().key)]
    (first, again), effects = yield from _pair(scene, keys)
    said = _unusable("a request with two keys", first, again, effects)
    return said or warning(f"{first}: taken; which of the two counts?")


@case("A key in the draft's own form is accepted", SYNTAX, effects=1)
def key_quoted(scene: Scene) -> Steps[CaseVerdict]:
    """`"k"` is what the draft prescribes, `k` what Stripe documents and most clients send."""
    quoted = not scene.target.quoted
    form = f'"{scene.key}"' if quoted else scene.key
    (first, again), effects = yield from _pair(scene, [form.encode()])
    said = _unusable(f"the key {form}", first, again, effects)
    if said is None:
        return passed("replayed")
    if first.refused and not effects:
        whose = "the draft" if quoted else "Stripe's documentation"
        return warning(f"{first}: clients that follow {whose} cannot use this API")
    return said


@case("Keys that the API issues work, and cannot be forged", SECURITY, effects=1, needs=(ISSUED,))
def keys_issued(scene: Scene) -> Steps[CaseVerdict]:
    asked = WireRequest("POST", scene.target.keys_path or "", scene.target.headers, b'{"count": 1}')
    issued = yield from send(asked)
    key = _key_in(issued)
    if key is None:
        raise NotRun(f"no key is in the response of {scene.target.keys_path} ({issued})")
    (first, again), effects = yield from watched(
        twice(scene, scene.request(keys=[scene.field(key)]))
    )
    if not again.same(first) or (effects or 1) != 1:
        return fault("a repeat under an issued key is not answered as the first one")
    place = len(key) * 3 // 4
    forged = key[:place] + ("A" if key[place] != "A" else "B") + key[place + 1 :]
    answer, effects = yield from watched(persist(scene, scene.request(keys=[scene.field(forged)])))
    if answer.done or effects:
        return fault(f"a forged key was accepted ({answer})")
    if not answer.refused:
        return fault(f"a forged key was answered {answer}, not 4xx")
    return passed(f"a forged one is refused ({answer})")


def _key_in(answer: WireResponse) -> str | None:
    try:
        told = json.loads(answer.body)
    except (ValueError, RecursionError):
        return None
    if isinstance(told, dict):
        told = next((told[n] for n in ("keys", "key", "idempotency_key") if n in told), None)
    if isinstance(told, list):
        told = told[0] if told else None
    return told if isinstance(told, str) and told.isascii() and told else None
