"""The report as one page: no script, nothing from elsewhere, and a policy that allows neither."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Final

from semel.checker.report import Report, Result
from semel.checker.verdict import Outcome

_CLASS: Final = {
    Outcome.PASSED: "passed",
    Outcome.FAULT: "fault",
    Outcome.WARNING: "warning",
    Outcome.NOT_RUN: "skipped",
}

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1d2430; --paper: #fff; --line: #d8dde6; --soft: #5a6472;
  --box: #f4f6f9; --passed: #1d7a43; --fault: #b3212a; --warning: #8a6300; --skipped: #5a6472 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebf0; --paper: #14181f; --line: #38404d;
  --soft: #a3adbb; --box: #1c222b; --passed: #5fce8d; --fault: #ff8087; --warning: #e5bd4f;
  --skipped: #a3adbb } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.lead { color: var(--soft); margin: .2rem 0 1.5rem }
.tally { display: flex; flex-wrap: wrap; gap: .75rem; margin: 0; padding: 0; list-style: none }
.tally li { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem 1rem;
  min-width: 7rem }
.tally b { display: block; font-size: 1.6rem; line-height: 1.2 }
.passed { color: var(--passed) } .fault { color: var(--fault) }
.warning { color: var(--warning) } .skipped { color: var(--skipped) }
details, .row { border-top: 1px solid var(--line) }
summary, .row { display: grid; grid-template-columns: 5.5rem 1fr; gap: .2rem 1rem;
  padding: .55rem 0 }
summary { cursor: pointer; list-style: none }
summary::-webkit-details-marker { display: none }
summary:hover { background: var(--box) } summary:focus-visible { outline: 2px solid var(--soft) }
.outcome { font-weight: 600 }
.said { grid-column: 2; color: var(--soft); overflow-wrap: anywhere }
.inside { margin: 0 0 1rem 6.5rem } .inside h3 { font-size: .85rem; margin: .8rem 0 .2rem }
ul.clauses { margin: 0; padding-left: 1.1rem; font-size: .9rem } a { color: inherit }
pre { margin: 0; padding: .5rem .7rem; background: var(--box); border-radius: .4rem;
  font-size: .8rem; line-height: 1.4; white-space: pre-wrap; overflow-wrap: anywhere }
footer { margin: 2rem 0; color: var(--soft); font-size: .9rem }
@media (max-width: 40rem) { .inside { margin-left: 0 } }
@media print { body { margin: 0; max-width: none; font-size: 11pt }
  details { break-inside: avoid } }
"""


def page(report: Report) -> str:
    """Return the page."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    tally = "".join(
        f'<li class="{_CLASS[outcome]}"><b>{len(report.of(outcome))}</b>{outcome.value}</li>'
        for outcome in Outcome
    )
    order = (Outcome.FAULT, Outcome.WARNING, Outcome.PASSED, Outcome.NOT_RUN)
    titles = {
        Outcome.FAULT: "Faults: something that a client relies on does not hold",
        Outcome.WARNING: "Warnings: allowed, but clients will trip",
        Outcome.PASSED: "Passed",
        Outcome.NOT_RUN: "Not run",
    }
    sections = "".join(
        f"<h2>{titles[outcome]}</h2>" + "".join(_result(report, one) for one in report.of(outcome))
        for outcome in order
        if report.of(outcome)
    )
    target = report.target
    what = escape(f"{target.method} {target.url}")
    effects = "counted" if target.effects else "not counted (--effects)"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width"><meta name="referrer" content="no-referrer">
<title>Safe to retry? {what}</title>
<style>{STYLE}</style></head><body>
<h1>Is it safe to retry? {what}</h1>
<p class="lead">{report.began:%Y-%m-%d %H:%M} UTC, {report.requests} requests in
{report.seconds:.0f} s, effects {effects}</p>
<ul class="tally"><li><b>{report.score}</b>score of 100</li>{tally}</ul>
{sections}
<footer>Of the cases that were run, the score is how many in a hundred passed; a warning counts
half. Made by <code>semel check</code>.</footer>
</body></html>
"""


def _result(report: Report, result: Result) -> str:
    outcome = result.verdict.outcome
    line = (
        f'<span class="outcome {_CLASS[outcome]}">{outcome.value}</span>'
        f"<span>{escape(result.case.title)}</span>"
        f'<span class="said">{escape(report.target.masked(result.verdict.said))}</span>'
    )
    if outcome is Outcome.NOT_RUN:
        return f'<div class="row">{line}</div>'
    clauses = "".join(
        f'<li><a href="{escape(clause.url)}">{escape(clause.name)}</a>: {escape(clause.says)}</li>'
        for clause in result.case.clauses
    )
    evidence = "".join(
        f"<h3>{escape(title)}</h3><pre>{escape(text)}</pre>"
        for exchange in result.exchanges
        for title, text in report.evidence(exchange)
    )
    opened = " open" if outcome is Outcome.FAULT else ""
    return (
        f"<details{opened}><summary>{line}</summary>"
        f'<div class="inside"><ul class="clauses">{clauses}</ul>{evidence}</div></details>'
    )
