"""The README's table of the twenty probes, beside the best peers of each kind.

Our column says what `tests/probes` asserts in CI: a test for each probe and kind of server.
"""

from __future__ import annotations

PROBES = {
    1: "replay: status, body and headers",
    2: "replay is marked",
    3: "50 at once: effects",
    4: "what the other 49 get",
    5: "same key, other body",
    6: "same key, other path or method",
    7: "same key, other caller",
    8: "key missing",
    9: "key empty, 300 characters, quoted, doubled",
    10: "handler commits, then raises: effects after the retry",
    11: "client disconnects",
    12: "kill -9 before the effect",
    13: "kill -9 between commit and record: effects after the retry",
    14: "two workers, 50 at once",
    15: "streamed answer",
    16: "1 GB upload, 100 MB answer",
    17: "binary, 204, 303, two Set-Cookie",
    18: "handler outlives its lease",
    19: "store down",
    20: "expiry",
}

# fastapi-idempotency 0.1.1, drf-idempotency 1.0.0, idempotency-kit 0.5.0: measured 2026-11-24, the
# best peer of each kind, set up as their READMEs say. "-": not measured, or not of its kind.
PEERS = ("fastapi-idempotency 0.1.1", "drf-idempotency 1.0.0", "idempotency-kit 0.5.0")
CELLS = {
    1: ("ok", "ok", "ok", "body ok"),
    2: ("ok", "ok", "ok", "none"),
    3: ("1", "1", "1", "1"),
    4: ("the answer", "the answer", "409", "the answer"),
    5: ("422", "422", "422", "422"),
    6: ("422", "422", "422", "own keys"),
    7: ("own key", "**gets the answer**", "**gets the answer**", "**gets the answer**"),
    8: ("400", "runs", "400", "runs"),
    9: ("400, ok, 400", "422, ok, accepted", "400, **400**, 400", "400, -, ok"),
    10: ("1", "**2**", "**2**", "**2**"),
    11: ("ok", "ok", "ok", "ok"),
    12: ("1 effect", "1 effect", "1 effect", "1 effect"),
    13: ("1", "**2**", "**2**", "**2**"),
    14: ("1 effect", "1 effect", "1 effect; 500s on SQLite", "1 effect"),
    15: ("passes, replays", "buffered", "**2 effects**", "**2 effects**"),
    16: ("ok", "refused: 8 MiB", "20 MB ok", "20 MB ok"),
    17: ("ok", "cookies: **2 effects**", "ok, cookies dropped", "**2 effects**"),
    18: ("1 effect", "1 effect", "**2 effects**", "1 effect"),
    19: ("503", "-", "500", "**runs**"),
    20: ("ok", "ok", "ok", "-"),
}


def table() -> str:
    """Return the table as Markdown. Our column says what `test_probes.py` asserts."""
    lines = [
        "| probe | Semel (ASGI, WSGI) | " + " | ".join(PEERS) + " |",
        "|---|---|---|---|---|",
    ]
    for number, what in PROBES.items():
        lines.append(f"| {number} {what} | " + " | ".join(CELLS[number]) + " |")
    return "\n".join(lines)
