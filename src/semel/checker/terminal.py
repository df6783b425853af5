"""The report as a table on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from semel.checker.report import Report
from semel.checker.verdict import Outcome

STYLES = {
    Outcome.PASSED: "green",
    Outcome.FAULT: "bold red",
    Outcome.WARNING: "yellow",
    Outcome.NOT_RUN: "bright_black",
}


def show(report: Report, console: Console) -> None:
    """Print the table, and the grounds of every fault."""
    table = Table(title=Text(f"{report.target.method} {report.target.url}", style="bold"))
    table.add_column("")
    table.add_column("case", ratio=2)
    table.add_column("what was found", ratio=3)
    for one in report.results:
        outcome = one.verdict.outcome
        style = STYLES[outcome]
        said = report.target.masked(one.verdict.said)
        table.add_row(Text(outcome.value, style=style), Text(one.case.title), _plain(said))
    console.print(table)
    for one in report.faults:
        clauses = "; ".join(f"{clause.name}: {clause.says}" for clause in one.case.clauses)
        console.print(Text.assemble((f"{one.case.name}  ", "bold red"), (clauses, "bright_black")))
    console.print(Text(report.summary(), style="bold"))


def _plain(text: str) -> Text:
    """What a server sends never reaches the terminal as anything but text."""
    return Text("".join(c if c.isprintable() else "\ufffd" for c in text))
