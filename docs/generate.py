"""Writes the pages that follow from the code: `python docs/generate.py`. A test checks them.

Problem pages from `semel.core.problems` and `semel.uploads.problems`, the policy page from
`Policy`'s own docstrings, the picture of the states from `semel.core.record.TRANSITIONS`, the
README's table of probes, the table of frameworks, the comparison with other libraries from
`bench/peers/results.json`, the picture of the packages from their imports, the invariants from the
judge's catalogue.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import re
import sys
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from docs import architecture_picture, frameworks_table, peers_page  # noqa: E402
from docs.probes_table import table  # noqa: E402
from lab.judge.invariants.catalogue import CATALOGUE as INVARIANTS  # noqa: E402
from semel.core import policy, problems, record  # noqa: E402
from semel.uploads import problems as uploads  # noqa: E402

CATALOGUE = (*problems.CATALOGUE, *uploads.CATALOGUE)

ADVICE = re.compile(r"Done: (.+)\nClient: (.+)\nOperator: (.+)\n", re.DOTALL)


def advice(module: ModuleType) -> dict[str, tuple[str, ...]]:
    """Return what the string under each problem of a module advises.

    By slug: whether anything was done, what the client does, what the operator does.
    """
    found = {}
    for statement, following in itertools.pairwise(ast.parse(inspect.getsource(module)).body):
        match statement, following:
            case ast.Assign([ast.Name(name)]), ast.Expr(ast.Constant(str(text))):
                advised = ADVICE.fullmatch(text)
                if advised is not None:
                    parts = (part.replace("\n", " ") for part in advised.groups())
                    found[getattr(module, name).slug] = tuple(parts)
    return found


REFERENCE = "9f1c02d4a7be"
EXAMPLES = {
    "key-invalid": problems.key_invalid("the key is empty; send 1 to 255 visible ASCII characters"),
    "request-too-large": problems.request_too_large(64 * policy.MEBIBYTE),
    "keys-not-issued": problems.keys_not_issued("count has to be a whole number from 1 to 1000"),
    "precondition-invalid": problems.precondition_invalid(
        "If-Match is neither * nor a list of entity tags in double quotes"
    ),
    "outcome-unknown": problems.OUTCOME_UNKNOWN._replace(reference=REFERENCE),
    "response-not-kept": problems.RESPONSE_NOT_KEPT._replace(reference=REFERENCE),
    "upload-invalid": uploads.invalid(
        "Upload-Length is missing; send the length of the whole file"
    ).problem,
    "digest-mismatch": uploads.mismatch("Content-Digest").problem,
    "quota-exceeded": uploads.over_quota(100, "uploads").problem,
}
"""Problems whose detail or members depend on the case."""


def problem_page(problem: problems.Problem, advised: tuple[str, ...]) -> str:
    done, client, operator = advised
    shown = EXAMPLES.get(problem.slug, problem)
    body = json.dumps(json.loads(shown.body()), indent=2, ensure_ascii=False)
    retry = f"Retry-After: {shown.retry_after}\n" if shown.retry_after is not None else ""
    return f"""# {problem.slug}

**{problem.status}: {problem.title}.**

**Was anything done?** {done}

**As the client:** {client}

**As the operator of the service:** {operator}

```
HTTP/1.1 {problem.status}
Content-Type: application/problem+json
{retry}
{body}
```
"""


def problem_index(advised: dict[str, tuple[str, ...]]) -> str:
    rows = [
        f"| [{p.slug}]({p.slug}.md) | {p.status} | {p.title} | {advised[p.slug][0].split('.')[0]} |"
        for p in CATALOGUE
    ]
    return "\n".join(
        [
            "# Problem types",
            "",
            "Every refusal is an RFC 9457 problem document. Its `type` is one of these pages;",
            "`Idempotency(problem_base=…)` points it to pages of your own.",
            "",
            "| type | status | title | was anything done? |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def policy_page() -> str:
    tree = ast.parse(inspect.getsource(policy.Policy))
    body = tree.body[0]
    assert isinstance(body, ast.ClassDef)
    defaults = {field.name: field.default for field in dataclasses.fields(policy.Policy)}
    lines = [
        "# Policies",
        "",
        "One `Policy` for the service, others by route: `Idempotency(store, policy=Policy(…),",
        'routes={"POST /charges": Policy(…)})`, or `@idempotency.route(…)` on a handler. A value',
        "that makes no sense is refused at once, with the field and the fix.",
        "",
    ]
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        name = statement.target.id
        assert isinstance(following, ast.Expr), name
        assert isinstance(following.value, ast.Constant), name
        text = inspect.cleandoc(str(following.value.value))
        lines += [f"## `{name}`", "", f"Default: `{said(defaults[name])}`", "", text, ""]
    return "\n".join(lines)


def said(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= policy.MEBIBYTE:
        return f"{value // policy.MEBIBYTE} MiB"
    return str(value) if hasattr(value, "total_seconds") else repr(value)


PLACES = {
    None: (70, 150),
    record.State.IN_FLIGHT: (270, 150),
    record.State.COMPLETED: (510, 150),
    record.State.PARKED: (390, 40),
    record.State.EXPIRED: (710, 150),
}


def states_picture() -> str:
    """Draw `TRANSITIONS`: a box a state, an arrow a pair of states with the events on it."""
    arrows: dict[tuple[object, object], list[str]] = {}
    for state, events in record.TRANSITIONS.items():
        for event, after in events.items():
            arrows.setdefault((state, after), []).append(event)
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 790 330" font-family="sans-serif"'
        ' font-size="12"><defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4"'
        ' markerWidth="8" markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" fill="#5a6472"/>'
        '</marker></defs><rect width="790" height="330" fill="#fff"/>'
    ]
    for (start, end), events in arrows.items():
        parts.append(arrow(PLACES[start], PLACES[end], ", ".join(events)))  # type: ignore[index]
    for state, (x, y) in PLACES.items():
        name = "absent" if state is None else state.name.lower().replace("_", " ")
        parts.append(
            f'<rect x="{x - 48}" y="{y - 17}" width="96" height="34" rx="8" fill="#eef3fb"'
            f' stroke="#4b7bec"/><text x="{x}" y="{y + 4}" text-anchor="middle">{name}</text>'
        )
    return "".join([*parts, "</svg>\n"])


def arrow(start: tuple[int, int], end: tuple[int, int], text: str) -> str:
    (x1, y1), (x2, y2) = start, end
    if start == end:
        path = f"M{x1 - 20} {y1 - 17} C{x1 - 45} {y1 - 70} {x1 + 45} {y1 - 70} {x1 + 20} {y1 - 17}"
        middle = (x1 - 30, y1 - 62)
    elif y1 != y2:
        path = f"M{x1 + 30} {y1 - 17} L{x2 - 30} {y2 + 17}"
        middle = ((x1 + x2) // 2 + 18, (y1 + y2) // 2 + 8)
    elif x1 < x2:
        path = f"M{x1 + 48} {y1 - 5} L{x2 - 48} {y2 - 5}"
        middle = ((x1 + x2) // 2, y1 - 12)
    else:
        depth = y1 + 17 + (x1 - x2) * 0.24
        path = f"M{x1} {y1 + 17} C{x1} {depth} {x2} {depth} {x2} {y2 + 17}"
        middle = ((x1 + x2) // 2, int(y1 + 28 + (x1 - x2) * 0.18))
    return (
        f'<path d="{path}" fill="none" stroke="#5a6472" marker-end="url(#a)"/>'
        f'<text x="{middle[0]}" y="{middle[1]}" text-anchor="middle" fill="#333">{text}</text>'
    )


def invariants() -> str:
    """Return the catalogue as a table."""
    rows = ["| | invariant | checked in |", "|---|---|---|"]
    for known in INVARIANTS:
        files = ", ".join(f"`{file}`" for file in known.checked_in)
        missing = f" *Not covered:* {known.not_covered}" if known.not_covered else ""
        title = known.title[:1].upper() + known.title[1:]
        rows.append(f"| {known.name} | **{title}.** {known.statement} | {files}.{missing} |")
    return "\n".join(rows)


def filled(page: Path, name: str, table: str) -> str:
    """Return a page with a table between the marks of its name."""
    before, rest = page.read_text("utf-8").split(f"<!-- {name}:start -->")
    after = rest.split(f"<!-- {name}:end -->")[1]
    return f"{before}<!-- {name}:start -->\n\n{table}\n\n<!-- {name}:end -->{after}"


def pages() -> dict[Path, str]:
    """Return every generated file and what is to stand in it."""
    advised = advice(problems) | advice(uploads)
    made = {DOCS / "problems" / f"{p.slug}.md": problem_page(p, advised[p.slug]) for p in CATALOGUE}
    made[DOCS / "problems" / "index.md"] = problem_index(advised)
    made[DOCS / "policies.md"] = policy_page()
    made[DOCS / "peers.md"] = peers_page.page()
    made[DOCS / "states.svg"] = states_picture()
    made[DOCS / "architecture.svg"] = architecture_picture.picture()
    architecture = DOCS / "architecture.md"
    made[architecture] = filled(architecture, "invariants", invariants())
    frameworks = DOCS / "frameworks.md"
    made[frameworks] = filled(frameworks, "frameworks", frameworks_table.table())
    made[ROOT / "README.md"] = filled(ROOT / "README.md", "probes", table())
    return made


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
