"""The report in its four forms, whatever the server sends."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from semel.checker import Report, Target
from semel.checker.cases import CASES
from semel.checker.exchange import WireRequest, WireResponse
from semel.checker.html import page
from semel.checker.report import EvidenceItem, Result
from semel.checker.verdict import CaseVerdict, NotRun, Outcome, fault, passed, warning

HOSTILE = (
    b"</pre></style><script>alert(1)</script><img src=x onerror=alert(1)> \x00\x1b[2J\xff ]]> &amp;"
)
TARGET = Target(
    "http://127.0.0.1:1/x?<script>alert(2)</script>",
    headers=(("Authorization", b"Bearer s3cret"),),
    secrets=(("TOKEN", "s3cret"),),
)


@pytest.fixture
def report() -> Report:
    said = HOSTILE.decode("latin-1") + "s3cret"
    asked = WireRequest("POST", "/x", TARGET.headers, HOSTILE)
    came = WireResponse(
        200, (("X-Echo", HOSTILE.decode("latin-1")), ("X-Token", "s3cret")), HOSTILE
    )
    evidence = (
        EvidenceItem(asked, came),
        EvidenceItem(asked, WireResponse(0, failure=said)),
        EvidenceItem(None, None, said),
    )
    verdicts = [passed(said), fault(said), warning(said), CaseVerdict(Outcome.NOT_RUN, said)]
    results = tuple(
        Result(case, verdict, evidence, 0.5) for case, verdict in zip(CASES, verdicts, strict=False)
    )
    return Report(TARGET, datetime(2026, 11, 25, tzinfo=UTC), results, 9, 1.5)


def test_the_json_keeps_its_members(report: Report) -> None:
    told = json.loads(report.to_json())
    assert list(told) == [
        "schema", "target", "began", "seconds", "requests", "score", "tally", "cases",
    ]  # fmt: skip
    assert told["schema"] == 1
    assert told["target"].keys() == {"url", "method", "effects_counted"}
    assert told["tally"] == {"passed": 1, "fault": 1, "warning": 1, "not run": 1}
    assert told["score"] == 50
    for case in told["cases"]:
        assert list(case) == ["name", "title", "outcome", "said", "clauses", "seconds", "evidence"]
        assert case["clauses"][0].keys() == {"name", "url", "says"}
        assert all(piece.keys() == {"what", "text"} for e in case["evidence"] for piece in e)


def test_the_junit_parses_and_counts(report: Report) -> None:
    suite = ElementTree.fromstring(report.to_junit())
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "1", "1")
    assert len(suite.findall("testcase/failure")) == len(suite.findall("testcase/skipped")) == 1


def test_the_page_shows_what_the_server_sent_as_text_only(report: Report) -> None:
    tags: list[tuple[str, list[tuple[str, str | None]]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, attrs))

    made = page(report)
    Reader().feed(made)
    assert not {"script", "img", "link", "iframe", "object"} & {tag for tag, _ in tags}
    assert not [
        a for _, attributes in tags for a, _ in attributes if a.startswith("on") or a == "src"
    ]
    assert "&lt;script&gt;" in made
    policy = dict(tags[3][1])["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")


def test_secrets_are_in_none_of_them(report: Report) -> None:
    for text in (report.to_json(), report.to_junit(), page(report)):
        assert "s3cret" not in text
        assert "$TOKEN" in text


def test_nothing_is_fetched_from_elsewhere(report: Report) -> None:
    without_links = re.sub(r'<a href="[^"]*">', "", page(report))
    assert "url(" not in without_links
    assert not re.search(r'(src|href)="', without_links)


def test_the_score_counts_what_was_run(report: Report) -> None:
    none = dataclasses.replace(report, results=())
    assert none.score == 0
    assert none.summary() == "score 0 of 100: 0 passed, 0 fault, 0 warning, 0 not run"
    assert issubclass(NotRun, Exception)
