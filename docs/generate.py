"""Writes the pages that follow from the code: `python docs/generate.py`. A test checks them.

Problem pages from `semel.core.problems`, the policy page from `Policy`'s own docstrings, the
picture of the states from `semel.core.record.TRANSITIONS`, the README's table of probes, the
comparison with other libraries from `bench/peers/results.json`.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from docs import peers_page, uploads_advice  # noqa: E402
from docs.probes_table import table  # noqa: E402
from semel.core import policy, problems, record  # noqa: E402
from semel.uploads import problems as uploads  # noqa: E402

CATALOGUE = (*problems.CATALOGUE, *uploads.CATALOGUE)

# slug: was anything done, what the client does, what the operator does
ADVICE = {
    "key-missing": (
        "No.",
        "Draw a key for the operation, a UUID for example, keep it with the request, and send it"
        " with every retry. Draw it once, outside the retry loop.",
        "The route has `Policy(required=True)`, or its handler takes the operation.",
    ),
    "key-invalid": (
        "No.",
        "Send 1 to 255 visible ASCII characters, bare or as one quoted string, in one header.",
        "A proxy that joins repeated headers with a comma can cause it; the detail says which rule"
        " was broken.",
    ),
    "key-reused": (
        "Not by this request. The first one with the key is untouched.",
        "To get the first answer, send exactly the first request. For another operation draw"
        " another key: whenever anything in the request changes.",
        "A client that serialises JSON anew for each attempt runs into this:"
        ' `Policy(fingerprint="json")` forgives it.',
    ),
    "key-expired": (
        "Not by this request. The first one may well have been.",
        "Look up what became of the operation where the service shows it. Do not simply draw a new"
        " key: that is how things happen twice.",
        "The answer is kept for `expires`, the key is refused for `tombstone` after that. Choose"
        ' them longer than your clients retry; `after_expiry="run"` lets keys be used again.',
    ),
    "in-flight": (
        "Not by this request. The first one is still running.",
        "Wait as long as `Retry-After` says and send the same request with the same key.",
        "After a crash this lasts until the lease ends (30 s unless the policy says otherwise).",
    ),
    "outcome-unknown": (
        "Nobody knows. The first request was cut off, and the route promises at most once.",
        "Do not retry. Give the reference to the people who run the service.",
        "The key is parked. Find out what became of the operation (the reference is the start of"
        " the record's key), and settle it.",
    ),
    "outcome-unrecorded": (
        "Perhaps: the request was worked on, and its outcome could not be written down.",
        "Send it again with the same key, and only with that key.",
        "The store failed between the handler and the record. Under at least once the retry may"
        " run it again; under at most once it will be parked.",
    ),
    "response-not-kept": (
        "Yes, by the first request.",
        "Read the result where the service shows it. A retry does not help and does no harm.",
        "The answer was larger than `max_response_body`, or a stream that broke off.",
    ),
    "request-too-large": (
        "No.",
        "Send less, or ask for another way to upload.",
        "`max_request_body` is the limit for requests with a key; the body is read whole before"
        " the claim.",
    ),
    "body-timeout": (
        "No.",
        "Send the request again with the same key.",
        "`body_timeout` and `min_body_rate` say how slow an upload may be.",
    ),
    "store-unavailable": (
        "No. Without its records the service cannot tell a retry from a new request.",
        "Wait as long as `Retry-After` says and send the same request with the same key.",
        "The database is down, full, read-only or locked; the log says which. Semel fails closed:"
        ' `on_store_error="run"` would let requests through without protection.',
    ),
    "handler-failed": (
        "Perhaps in part. The handler raised, and the route promises at most once.",
        "Do not retry. Look up what became of the operation.",
        "The exception is in the log. The failure is the operation's answer from now on.",
    ),
    "connection-not-taken": (
        "Perhaps, outside the key's transaction. The answer was withheld and nothing is kept.",
        "Report it.",
        'The route declares `guarantee="atomic"`, and its handler answered without'
        " `op.connection()`: take it, or drop the declaration.",
    ),
    "keys-not-issued": (
        "No keys were issued.",
        'Send `{"count": 50}`, a whole number from 1 to 1000, with `"route": "POST /charges"` where'
        " the keys are to be good for that only.",
        "`Issuer(path=…)` says where keys are handed out.",
    ),
    "precondition-failed": (
        "Not by this request.",
        "Read the resource again and decide anew; send what follows from it as a new request, with"
        " a new key. A retry under the same key gets this answer again. If it may have been your"
        " own first attempt that changed the resource, its answer was lost, and no key was sent to"
        " tell: compare before you overwrite.",
        "Whoever was faster has won. Clients that retry conditional writes without a key get this"
        " for their own success: let them send a key.",
    ),
    "precondition-required": (
        "No.",
        "GET the resource, and send the request again with `If-Match` and its `ETag`, or with"
        " `If-None-Match: *` to create it. The same key may be used.",
        "The route has `require_match=True`: it protects against lost updates (RFC 6585).",
    ),
    "precondition-invalid": (
        "No.",
        "Send `If-Match` or `If-None-Match` as `*`, or as tags in double quotes, as they came in"
        " `ETag`. The detail says which of the two could not be read.",
        "Nothing is written under a condition that cannot be read.",
    ),
    "upstream-unavailable": (
        "Not by this request. No connection could be had, so not a byte of it was sent.",
        "Wait as long as `Retry-After` says and send the same request with the same key.",
        "The service behind the gateway is down, its name cannot be resolved, its certificate is"
        " not accepted, or all of `[upstream] connections` are in use; the gateway's log says"
        " which.",
    ),
    "upstream-failed": (
        "Perhaps: the request was sent, and no whole answer came back.",
        "With a key, send the same request with the same key. Without one, look up what became of"
        " it before you send it again.",
        "The service behind the gateway died or closed the connection. A request with a key gets"
        " this only where the route does not promise at most once; there it is parked.",
    ),
    "upstream-timeout": (
        "Perhaps: the request was sent, and no answer came in time.",
        "With a key, send the same request with the same key. Without one, look up what became of"
        " it before you send it again.",
        "`[upstream] timeout` is how long the service may be silent. A request with a key gets this"
        " only where the route does not promise at most once; there it is parked.",
    ),
}

ADVICE |= uploads_advice.ADVICE


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


def problem_page(problem: problems.Problem) -> str:
    done, client, operator = ADVICE[problem.slug]
    shown = EXAMPLES.get(problem.slug, problem)
    body = json.dumps(json.loads(shown.body()), indent=2, ensure_ascii=False)
    retry = f"Retry-After: {shown.retry_after}\n" if shown.retry_after is not None else ""
    return f"""# {problem.slug}

**{problem.status}: {problem.title}.**

**Was anything done?** {done}

**As the client:** {client}

**As the one who runs the service:** {operator}

```
HTTP/1.1 {problem.status}
Content-Type: application/problem+json
{retry}
{body}
```
"""


def problem_index() -> str:
    rows = [
        f"| [{p.slug}]({p.slug}.md) | {p.status} | {p.title} | {ADVICE[p.slug][0].split('.')[0]} |"
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


def readme() -> str:
    text = (ROOT / "README.md").read_text("utf-8")
    before, rest = text.split("<!-- probes:start -->")
    after = rest.split("<!-- probes:end -->")[1]
    return f"{before}<!-- probes:start -->\n\n{table()}\n\n<!-- probes:end -->{after}"


def pages() -> dict[Path, str]:
    """Return every generated file and what is to stand in it."""
    made = {DOCS / "problems" / f"{p.slug}.md": problem_page(p) for p in CATALOGUE}
    made[DOCS / "problems" / "index.md"] = problem_index()
    made[DOCS / "policies.md"] = policy_page()
    made[DOCS / "peers.md"] = peers_page.page()
    made[DOCS / "states.svg"] = states_picture()
    made[ROOT / "README.md"] = readme()
    return made


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
