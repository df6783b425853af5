"""Runs `semel check` over Semel and over other libraries, and writes `results.json`.

    python -m bench.peers [NAME …]

Each library is installed into a virtual environment of its own under `bench/.venvs`, is set up as
its README says (`bench/peers/apps`), and is put to every case, kills included. To add one (Semel on
Django, say): an app, and a line in `SUBJECTS`; what needs nothing installed is one of ours, and
`tests/checker/test_own_adapters.py` asks of it that it has no fault.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from semel.checker import CannotRun, CheckLimits, Effects, Report, Target, examine
from semel.testing.servers import Valkey, free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.json"
ASGI = ("fastapi==0.165.0", "uvicorn==0.54.0")
DJANGO = ("gunicorn==27.0.1",)


class Subject(NamedTuple):
    """A library, and how it is set up."""

    name: str
    app: str
    set_up: str
    """In a few words, for the table."""
    needs: tuple[str, ...] = ()
    """What is installed; empty: it is here already."""
    keys: str | None = None
    """Where it issues keys."""


SUBJECTS = (
    Subject("Semel (FastAPI)", "semel_asgi", "SQLite, atomic, scope", keys="/idempotency-keys"),
    Subject("Semel (Flask)", "semel_wsgi", "SQLite, atomic, scope", keys="/idempotency-keys"),
    Subject("Semel (Django)", "semel_django", "SQLite, atomic, scope", keys="/idempotency-keys"),
    Subject("idemkit", "idemkit_asgi", "Redis, scope", ("idemkit==1.0.2", "redis==8.1.0", *ASGI)),
    Subject(
        "fastapi-idempotency",
        "fastapi_idempotency_asgi",
        "Tortoise on SQLite, scope",
        ("fastapi-idempotency==0.1.1", "tortoise-orm==1.1.9", *ASGI),
    ),
    Subject(
        "fastapi-idempotency-key",
        "fastapi_idempotency_key_asgi",
        "SQLite; has no scope",
        ("fastapi-idempotency-key==0.1.1", "aiosqlite", *ASGI),
    ),
    Subject(
        "asgi-idempotency-header",
        "asgi_idempotency_header_asgi",
        "Redis; has no scope",
        ("asgi-idempotency-header==0.2.0", "redis==8.1.0", *ASGI),
    ),
    Subject(
        "fastidempotent",
        "fastidempotent_asgi",
        "Redis; has no scope",
        ("fastidempotent==0.1.0", "redis==8.1.0", *ASGI),
    ),
    Subject(
        "drf-idempotency",
        "django_shop",
        "Django, Redis; has no scope",
        ("drf-idempotency[redis]==1.0.0", "django==5.2.19", *DJANGO),
    ),
    Subject(
        "django-idempotency-key",
        "django_shop",
        "Django, Redis cache and lock",
        (
            "django-idempotency-key==1.3.0",
            "django==4.2.30",
            "django-redis==6.0.0",
            "djangorestframework",
            *DJANGO,
        ),
    ),
)


def python(subject: Subject) -> str:
    """Return the interpreter that has the library, and install it where it is missing."""
    if not subject.needs:
        return sys.executable
    folder = ROOT / "bench" / ".venvs" / subject.name
    marker, wanted = folder / "installed", "\n".join(subject.needs)
    if not marker.exists() or marker.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, "--disable-pip-version-check", *subject.needs], check=True)
        marker.write_text(wanted)
    return str(folder / "bin/python")


def version(subject: Subject) -> str:
    if not subject.needs:
        return "this one"
    return subject.needs[0].split("==")[1]


def run(subject: Subject, redis: str) -> Report:
    """Examine a library."""
    port = free_port()
    app = f"bench.peers.apps.{subject.app}:app"
    if subject.app.endswith("_asgi"):
        server = f"uvicorn {app} --port {port} --log-level critical"
    else:
        server = f"gunicorn {app} --bind 127.0.0.1:{port} --worker-class gthread --threads 30"
        server += " --log-level critical --workers 1"
    with tempfile.TemporaryDirectory() as folder:
        environment = {"PEER_FOLDER": folder, "PEER_REDIS": redis, "PEER": subject.name}
        path = os.pathsep.join([str(ROOT), *([] if subject.needs else [str(ROOT / "src")])])
        words = ["env", "-C", str(ROOT), f"PYTHONPATH={path}"]
        words += [f"{name}={value}" for name, value in environment.items()]
        words += [python(subject), "-m", *server.split()]
        return examine(
            target(port, subject), command=shlex.join(words), limits=CheckLimits(2000, 900)
        )


def target(port: int, subject: Subject) -> Target:
    return Target(
        f"http://127.0.0.1:{port}/charges",
        body='{"amount": 5, "for": "tea"}',
        headers=(("Authorization", b"Bearer alice"),),
        secrets=(("TOKEN", "Bearer alice"),),
        effects=Effects.parse("GET /charges/count charges"),
        other_path="/refunds",
        other_caller=(("Authorization", b"Bearer bob"),),
        no_auth=True,
        failing_body='{"amount": -1}',
        keys_path=subject.keys,
        patience=8.0,
        kills=12,
    )


def told(subject: Subject, report: Report) -> dict[str, Any]:
    """Return what is kept of a report."""
    return {
        "version": version(subject),
        "set_up": subject.set_up,
        "date": f"{report.began:%Y-%m-%d}",
        "score": report.score,
        "cases": {
            one.case.name: [one.verdict.outcome.value, one.verdict.said] for one in report.results
        },
    }


def main(names: list[str]) -> None:
    """Run those that are named, or all; the results of the others stay."""
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` too takes the servers along
    redis = Valkey()
    redis.start()
    try:
        for subject in SUBJECTS:
            if names and subject.name not in names:
                continue
            print(f"{datetime.now(UTC):%H:%M:%S} {subject.name}", flush=True)
            try:
                report = run(subject, f"redis://127.0.0.1:{redis.port}/0")
            except CannotRun as error:
                print(f"  could not run: {error}", flush=True)
                continue
            print(f"  {report.summary()}", flush=True)
            for one in report.results:
                if one.verdict.outcome.value in ("fault", "warning"):
                    print(f"    {one.verdict.outcome.value} {one.case.name}: {one.verdict.said}")
            results[subject.name] = told(subject, report)
            order = [one.name for one in SUBJECTS if one.name in results]
            text = json.dumps({n: results[n] for n in order}, indent=1, ensure_ascii=False)
            RESULTS.write_text(text + "\n", "utf-8")
    finally:
        redis.close()


if __name__ == "__main__":
    main(sys.argv[1:])
