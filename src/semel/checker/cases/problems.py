"""Cases about the form of refusals."""

from __future__ import annotations

import json

from semel.checker.case import case
from semel.checker.exchange import Steps, WireResponse
from semel.checker.scene import Scene
from semel.checker.steps import begin, send
from semel.checker.verdict import (
    MISSING,
    PROBLEM,
    PROBLEM_TYPE,
    REUSED,
    CaseVerdict,
    NotRun,
    fault,
    passed,
    warning,
)


def _refusals(scene: Scene) -> Steps[list[tuple[str, WireResponse]]]:
    """Return the refusals that can be provoked: of a missing key, a bad one, and a reused one."""
    asked = [
        ("key missing", scene.request(keys=[])),
        ("key empty", scene.request(keys=[b""])),
    ]
    if scene.other_body not in (None, scene.body):
        yield from begin(scene)
        asked.append(("key reused", scene.request(body=scene.other_body)))
    answers = []
    for name, request in asked:
        answer = yield from send(request)
        if answer.refused:
            answers.append((name, answer))
    if not answers:
        raise NotRun("nothing was refused")
    return answers


def _document(answer: WireResponse) -> dict[str, object] | None:
    try:
        read = json.loads(answer.body)
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None


def _is_problem(answer: WireResponse) -> bool:
    kind = (answer.header("Content-Type") or "").partition(";")[0].strip().lower()
    return kind == "application/problem+json"


@case("Refusals are problem documents", PROBLEM, MISSING, REUSED, effects=3)
def problem_documents(scene: Scene) -> Steps[CaseVerdict]:
    """The draft asks for a link to documentation, in a problem's type or in a Link header."""
    plain = []
    for name, answer in (yield from _refusals(scene)):
        if not _is_problem(answer):
            plain.append(f"{name} ({answer.header('Content-Type') or 'no content type'})")
            continue
        document = _document(answer)
        if document is None:
            return fault(f"{name}: the problem document is no JSON object")
        if "status" in document and document["status"] != answer.status:
            return fault(
                f"{name}: the document's status is {document['status']!r}, the response's {answer}"
            )
        for member in ("type", "title", "detail", "instance"):
            if not isinstance(document.get(member, ""), str):
                return fault(f"{name}: {member} is not a string")
        linked = any("describedby" in link for link in answer.all("Link"))
        if document.get("type", "about:blank") == "about:blank" and not linked:
            plain.append(f"{name} (no type, no link)")
    if plain:
        return warning(f"not problem documents that lead to documentation: {', '.join(plain)}")
    return passed("application/problem+json, with a type")


@case("Each kind of refusal has a type of its own", PROBLEM_TYPE, effects=3)
def problem_types(scene: Scene) -> Steps[CaseVerdict]:
    """A 422 can be the key's or the form's: only the type tells clients which."""
    types: dict[str, str] = {}
    for name, answer in (yield from _refusals(scene)):
        document = _document(answer) if _is_problem(answer) else None
        if document is None:
            raise NotRun(f"{name} is refused without a problem document")
        kind = str(document.get("type", "about:blank"))
        if {name, types.get(kind)} >= {"key reused"} and kind in types:
            return warning(f"{name} and {types[kind]} have the same type, {kind!r}")
        types[kind] = name
    if len(types) < 2:
        raise NotRun("only one kind was refused")
    return passed(f"{len(types)} types")
