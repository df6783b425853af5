"""The findings of an examination, as data, as JSON and as JUnit's XML."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple
from xml.etree import ElementTree

from semel.checker.case import Case
from semel.checker.exchange import WireRequest, WireResponse
from semel.checker.target import Target
from semel.checker.verdict import CaseVerdict, Outcome

SCHEMA: Final = 1
"""Version of the JSON: members are added within a version, never renamed or taken away."""
SHOWN: Final = 1500
"""Bytes of a body that are kept as evidence."""

_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class EvidenceItem(NamedTuple):
    """A piece of evidence: a request and its response, or a note."""

    request: WireRequest | None
    answer: WireResponse | None
    note: str = ""


@dataclass(frozen=True)
class Result:
    """A case and its verdict, with the evidence."""

    case: Case
    verdict: CaseVerdict
    exchanges: tuple[EvidenceItem, ...]
    seconds: float


@dataclass(frozen=True)
class Report:
    """The outcome of an examination."""

    target: Target
    began: datetime
    results: tuple[Result, ...]
    requests: int
    seconds: float

    def of(self, outcome: Outcome) -> tuple[Result, ...]:
        """The results with that outcome."""
        return tuple(one for one in self.results if one.verdict.outcome is outcome)

    @property
    def faults(self) -> tuple[Result, ...]:
        """The results that are faults."""
        return self.of(Outcome.FAULT)

    @property
    def score(self) -> int:
        """Of the cases that were run, how many in a hundred passed; a warning counts half."""
        tally = Counter(one.verdict.outcome for one in self.results)
        run = len(self.results) - tally[Outcome.NOT_RUN]
        return int(100 * (tally[Outcome.PASSED] + tally[Outcome.WARNING] / 2) / run) if run else 0

    def summary(self) -> str:
        """Say it in one line."""
        counted = ", ".join(f"{len(self.of(outcome))} {outcome.value}" for outcome in Outcome)
        return f"score {self.score} of 100: {counted}"

    def evidence(self, exchange: EvidenceItem) -> list[tuple[str, str]]:
        """Return what passed, as text: what it is, and its bytes. Secrets are masked."""
        if exchange.request is None:
            return [("note", self.target.masked(exchange.note))]
        request, answer = exchange.request, exchange.answer
        head = [f"{request.method} {request.path}"]
        head += [f"{name}: {_shown(value)}" for name, value in request.headers]
        manner = "" if request.manner.value == "whole" else f" ({request.manner.value})"
        parts = [(f"sent{manner}", _message(head, request.body))]
        if answer is not None and answer.status:
            lines = [str(answer.status), *(f"{name}: {value}" for name, value in answer.headers)]
            parts.append((f"came back in {answer.seconds:.2f} s", _message(lines, answer.body)))
        elif answer is not None:
            parts.append(("nothing came back", answer.failure))
        return [(title, self.target.masked(text)) for title, text in parts]

    def to_json(self) -> str:
        """Return it as JSON (see `SCHEMA`)."""
        told = {
            "schema": SCHEMA,
            "target": {
                "url": self.target.url,
                "method": self.target.method,
                "effects_counted": self.target.effects is not None,
            },
            "began": self.began.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 2),
            "requests": self.requests,
            "score": self.score,
            "tally": {outcome.value: len(self.of(outcome)) for outcome in Outcome},
            "cases": [self._case(result) for result in self.results],
        }
        return json.dumps(told, indent=2, ensure_ascii=False) + "\n"

    def _case(self, result: Result) -> dict[str, object]:
        return {
            "name": result.case.name,
            "title": result.case.title,
            "outcome": result.verdict.outcome.value,
            "said": self.target.masked(result.verdict.said),
            "clauses": [clause._asdict() for clause in result.case.clauses],
            "seconds": round(result.seconds, 3),
            "evidence": [
                [{"what": title, "text": text} for title, text in self.evidence(exchange)]
                for exchange in result.exchanges
            ],
        }

    def to_junit(self) -> str:
        """Return it as JUnit's XML: faults are failures, cases that were not run are skipped."""
        suite = ElementTree.Element(
            "testsuite",
            name=f"semel check {self.target.url}",
            tests=str(len(self.results)),
            failures=str(len(self.faults)),
            errors="0",
            skipped=str(len(self.of(Outcome.NOT_RUN))),
            time=f"{self.seconds:.3f}",
            timestamp=self.began.isoformat(timespec="seconds"),
        )
        for one in self.results:
            made = ElementTree.SubElement(
                suite,
                "testcase",
                classname="semel.check",
                name=f"{one.case.name}: {one.case.title}",
                time=f"{one.seconds:.3f}",
            )
            said = _NOT_XML.sub("\ufffd", self.target.masked(one.verdict.said))
            if one.verdict.outcome is Outcome.FAULT:
                text = "\n\n".join(
                    f"{title}\n{body}" for x in one.exchanges for title, body in self.evidence(x)
                )
                failure = ElementTree.SubElement(made, "failure", message=said)
                failure.text = _NOT_XML.sub("\ufffd", text)
            elif one.verdict.outcome is Outcome.NOT_RUN:
                ElementTree.SubElement(made, "skipped", message=said)
            else:
                ElementTree.SubElement(
                    made, "system-out"
                ).text = f"{one.verdict.outcome.value}: {said}"
        return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _message(head: list[str], body: bytes) -> str:
    shown = body[:SHOWN].decode("utf-8", errors="backslashreplace")
    more = f"\n… {len(body) - SHOWN} bytes more" if len(body) > SHOWN else ""
    return "\n".join(head) + (f"\n\n{shown}{more}" if body else "")


def _shown(value: bytes) -> str:
    text = value.decode("ascii", errors="backslashreplace")
    return text if len(text) <= 300 else f"{text[:100]}… ({len(text)} characters)"
