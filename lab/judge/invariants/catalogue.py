"""The catalogue of invariants: safety S1 to S15 and liveness L1 to L7, and where each is checked.

`docs/architecture.md` prints it as a table.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Invariant(NamedTuple):
    """A property that every store and mode keeps, as far as its guarantee goes."""

    name: str
    title: str
    statement: str
    checked_in: tuple[str, ...]
    """Files, from the root of the repository."""
    not_covered: str = ""
    """Parts of the statement that nothing checks, and why."""


_SIMULATION: Final = "tests/sim/test_simulation.py"
_STORES: Final = "tests/stores/test_contract.py"
_KILLS: Final = (
    "tests/chaos/test_kills.py",
    "tests/chaos/test_postgres_kills.py",
    "tests/chaos/test_sqlalchemy_kills.py",
    "tests/chaos/test_servers.py",
    "tests/chaos/test_rolling_deploy.py",
)
"""SQLite, PostgreSQL, SQLAlchemy, whole servers, two releases on one store."""
_REDIS_KILLS: Final = "tests/chaos/test_redis_kills.py"

CATALOGUE: Final[tuple[Invariant, ...]] = (
    Invariant(
        "S1",
        "at most one effect",
        "In one life of a key, at most one effect is committed; where the guarantee admits a"
        " repeat, the history shows its cause.",
        ("lab/judge/invariants/effects.py", _SIMULATION, *_KILLS, _REDIS_KILLS),
    ),
    Invariant(
        "S2",
        "an answer means a durable effect",
        "A kept response that a client has seen means that the record is completed and, for a"
        " success, that its effect stands; both survive any later crash within the store's"
        " stated limits.",
        (
            "lab/judge/invariants/effects.py",
            _SIMULATION,
            *_KILLS,
            _REDIS_KILLS,
            "tests/stores/test_postgres_failover.py",
        ),
        "Power loss: a kill does not lose what the operating system has yet to write.",
    ),
    Invariant(
        "S3",
        "replays are equal",
        "Any two kept responses to one key and fingerprint are equal in status, body and the"
        " headers that are stored.",
        ("lab/judge/invariants/answers.py", _SIMULATION, *_KILLS, "tests/http/test_answers.py"),
    ),
    Invariant(
        "S4",
        "written once",
        "A completed record does not change before its expiry, and never returns to in flight.",
        ("lab/judge/invariants/records.py", _SIMULATION, _STORES),
    ),
    Invariant(
        "S5",
        "fencing",
        "The tokens of a key strictly increase; a completion, release, renewal, parking or atomic"
        " effect is applied only under the current token and while the record is in flight.",
        ("lab/judge/invariants/records.py", _SIMULATION, _STORES, *_KILLS[:3]),
    ),
    Invariant(
        "S6",
        "scopes do not interfere",
        "The response to a request of one scope depends on requests of that scope only, down to"
        " whether a key exists.",
        (
            "lab/judge/invariants/answers.py",
            _SIMULATION,
            "tests/core/test_keys_oracle.py",
            "tests/http/test_streams_and_headers.py",
            "tests/django/test_callers.py",
            "tests/functions/test_functions.py",
        ),
        "Timing of look-ups in a foreign scope is not measured.",
    ),
    Invariant(
        "S7",
        "another request is not the same",
        "The same key with another fingerprint runs nothing, replays nothing and changes nothing.",
        (
            "lab/judge/invariants/answers.py",
            _SIMULATION,
            "tests/core/test_engine.py",
            "tests/http/test_answers.py",
        ),
    ),
    Invariant(
        "S8",
        "no means no",
        "An attempt that was told that it was not executed has left no effect and will leave none.",
        ("lab/judge/invariants/effects.py", _SIMULATION, *_KILLS[:3]),
    ),
    Invariant(
        "S9",
        "honest expiry",
        "After its record is purged, a key runs as new (chosen by the client) or is refused"
        " (issued, past its not-after); it never replays stale.",
        (
            "lab/judge/invariants/expiry.py",
            _SIMULATION,
            _STORES,
            "tests/http/test_answers.py",
            "tests/http/test_issued_keys.py",
        ),
    ),
    Invariant(
        "S10",
        "steps",
        "The result of a step is written once; the next step starts only after it is recorded;"
        " the derived key depends on key and step name only, never on the attempt; what is"
        " recorded is not called again; nothing is recorded under a stale token; a far side that"
        ' ignores derived keys is never called twice where `on_unknown="park"`.',
        ("lab/judge/invariants/steps.py", _SIMULATION, "tests/operation/test_steps.py", _STORES),
        "Where a PostgreSQL transaction is the claim, an attempt that has lost its transaction"
        " unnoticed still records steps: the simulation counts what comes of it as admitted.",
    ),
    Invariant(
        "S11",
        "the journal comes first",
        "The client has its request durable before the first byte leaves, uses one key for one"
        " operation, and forgets it only after a definite answer.",
        (
            "tests/client/test_journal.py",
            "tests/client/test_transports.py",
            "tests/chaos/test_clients.py",
        ),
    ),
    Invariant(
        "S12",
        "the completer claims like anybody",
        "Only operations whose lease has ended are completed in the background, through the same"
        " claim and fence, as their original caller and by the same version of the handler; a"
        " caller who may no longer do it is parked.",
        ("tests/operation/test_completer.py", "tests/gateway/test_real_services.py"),
    ),
    Invariant(
        "S13",
        "issued keys",
        "An issued key cannot be forged, is good for one scope (and route, where it names one)"
        " until its not-after, and takes effect at most once for ever.",
        (
            "lab/judge/invariants/expiry.py",
            _SIMULATION,
            "tests/core/test_issued.py",
            "tests/http/test_issued_keys.py",
        ),
    ),
    Invariant(
        "S14",
        "one reader of truth",
        "Nothing but the store says that a key is absent: a store that cannot be asked, a standby"
        " or a stale primary means 503, and nothing runs.",
        (
            _SIMULATION,
            "tests/core/test_engine.py",
            "tests/http/test_streams_and_headers.py",
            "tests/stores/test_postgres_failover.py",
            _REDIS_KILLS,
        ),
        "Redis may lose acknowledged records with a failover; that this weakness shows is tested.",
    ),
    Invariant(
        "S15",
        "what was raised is undone",
        "Where a handler wrote in the operation's transaction and then raised what its framework"
        " answers with a status that is kept, nothing of it is committed, and the response is"
        " recorded and replayed.",
        (
            "lab/judge/invariants/raised.py",
            _SIMULATION,
            "tests/core/test_engine.py",
            "tests/operation/test_raised.py",
            *_KILLS[:2],
        ),
    ),
    Invariant(
        "L1",
        "nothing stays in flight",
        "Once faults end and its key is asked for again, every record in flight is completed,"
        " parked or given back.",
        ("lab/judge/invariants/records.py", _SIMULATION, *_KILLS, _REDIS_KILLS),
    ),
    Invariant(
        "L2",
        "who keeps asking is told",
        "A client that keeps retrying within the retention gets a definite answer.",
        (_SIMULATION, "tests/chaos/test_clients.py", "tests/chaos/test_servers.py"),
    ),
    Invariant(
        "L3",
        "poison stops",
        "A handler that takes its process down every time is parked after `max_attempts` runs.",
        ("tests/operation/test_steps.py", "tests/operation/test_completer.py"),
    ),
    Invariant(
        "L4",
        "storage is bounded",
        "What has expired is purged, in batches that leave room for traffic, so that storage is"
        " bounded by arrivals times retention.",
        (
            _STORES,
            "tests/stores/test_sweeping.py",
            "tests/stores/test_postgres.py",
            "bench/sweeping.py",
        ),
    ),
    Invariant(
        "L5",
        "shutdown drains",
        "On shutdown, running operations end, or are undone and their keys given back.",
        (
            "tests/drivers/test_cancel.py",
            "tests/http/test_asgi.py",
            "tests/gateway/test_real_services.py",
        ),
    ),
    Invariant(
        "L6",
        "a hot key harms nobody",
        "Of many requests for one key one runs, and a bounded number waits.",
        (
            "tests/core/test_engine.py",
            "tests/drivers/test_leases_and_waiters.py",
            "tests/http/test_answers.py",
            "tests/http/test_streams_and_headers.py",
        ),
        "How much a hot key slows other keys down is not measured.",
    ),
    Invariant(
        "L7",
        "an overload ends",
        "Clients' retries do not keep a service down: goodput is back within seconds of the end"
        " of an outage.",
        ("tests/client/test_retry_storm.py",),
        "In virtual time; not measured with real servers.",
    ),
)
