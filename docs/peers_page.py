"""The page of the comparison, from `bench/peers/results.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from semel.checker.cases import CASES
from semel.checker.verdict import Outcome

FILE = Path(__file__).parents[1] / "bench" / "peers" / "results.json"
RESULTS: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
CELLS = {
    Outcome.PASSED.value: "ok",
    Outcome.FAULT.value: "**fault**",
    Outcome.WARNING.value: "warning",
    Outcome.NOT_RUN.value: "-",
}

NAMES = {Outcome.FAULT.value: "**fault**"}


def _safe(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def page() -> str:
    """Return the page as Markdown."""
    names = list(RESULTS)
    dates = sorted({result["date"] for result in RESULTS.values()})
    lines = [
        "# Other libraries, examined",
        "",
        f"[`semel check`](guides/check.md) over Semel and over other libraries, {dates[-1]}. Each"
        " is set up as its README says, with a scope where it offers one, its lease at 3 s where"
        " that can be set, behind the same authentication, around the same handler: 10 ms of work,"
        " a charge committed to a SQLite file, 30 ms of work. Semel's handler does the same and"
        " commits through `op.connection()`.",
        "",
        "We wrote the checker and one of the libraries: weigh that. The applications are in"
        " `bench/peers/apps`, and `make peers` runs it all again, on your machine. One run each; a"
        " fault that needs an unlucky moment (kills, duplicates, cut connections) may be missed in"
        " one run and found in the next.",
        "",
        "The last case is about design, not care: whoever keeps the record apart from the"
        " business's database leaves a gap between two commits, and a kill in it runs the work"
        " twice or leaves the key stuck. fastapi-idempotency's README says so itself. Semel has the"
        " same gap wherever a handler does not take `op.connection()`, and on Redis"
        " ([Guarantees](guarantees.md)).",
        "",
        "| library | version | set up with | score | faults | warnings |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in RESULTS.items():
        outcomes = [outcome for outcome, _ in result["cases"].values()]
        lines.append(
            f"| {name} | {result['version']} | {result['set_up']} | {result['score']}"
            f" | {outcomes.count('fault')} | {outcomes.count('warning')} |"
        )
    lines += ["", "## Case by case", "", "| case | " + " | ".join(names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for case in CASES:
        cells = [CELLS[RESULTS[name]["cases"][case.name][0]] for name in names]
        lines.append(f"| {case.title} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "A `-` was not run: the applications have no second method and no key that expires soon,"
        " and only Semel issues keys; other reasons stand below.",
        "",
        "## What was found",
        "",
    ]
    titles = {case.name: case.title for case in CASES}
    for name, result in RESULTS.items():
        found = [
            f"- {NAMES.get(outcome, outcome)}: *{titles[case]}.* {_safe(said)}"
            for case, (outcome, said) in result["cases"].items()
            if outcome != "passed" and not said.startswith("give --")
        ]
        lines += [f"### {name}", "", *(found or ["Nothing."]), ""]
    return "\n".join(lines)
