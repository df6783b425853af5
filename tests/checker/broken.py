"""A small API with idempotency keys, correct until told to be broken: a switch for each fault.

    python -m tests.checker.broken --port 8000 --folder /tmp/x --faults forgets-in-a-crash

Effects and records are in one SQLite file, so that it can be killed.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import select
import socket
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FAULTS = {
    "runs-again": "replay-runs-once",
    "changes-the-status": "replay-status",
    "changes-the-body": "replay-body",
    "loses-the-location": "replay-headers",
    "does-not-look-at-the-key": "another-key",
    "runs-duplicates": "concurrent-duplicates",
    "fails-under-duplicates": "concurrent-answers",
    "runs-beside-a-slow-upload": "slow-request",
    "replays-to-another-body": "other-body",
    "runs-another-body": "other-body",
    "runs-the-same-json": "same-json",
    "replays-on-another-path": "other-path",
    "replays-to-another-method": "other-method",
    "leaks-to-another-caller": "other-caller",
    "replays-before-authentication": "no-auth",
    "fails-without-a-key": "key-missing",
    "runs-without-a-key": "key-missing",
    "ignores-an-empty-key": "key-empty",
    "fails-on-a-malformed-key": "key-malformed",
    "fails-on-a-long-key": "key-long",
    "fails-on-an-overlong-key": "key-overlong",
    "truncates-keys": "key-truncated",
    "ignores-case": "key-case",
    "fails-on-two-keys": "key-doubled",
    "runs-quoted-keys-twice": "key-quoted",
    "accepts-forged-keys": "keys-issued",
    "forgets-when-nobody-listens": "lost-answer",
    "claims-before-the-body": "disconnect-mid-body",
    "sticks-after-a-failure": "failure-repeated",
    "answers-without-doing": "failure-corrected",
    "expires-too-soon": "expiry",
    "lies-about-its-status": "problem-documents",
    "keeps-effects-in-memory": "killed-after-answer",
    "keeps-records-in-memory": "killed-after-answer",
    "commits-before-the-record": "killed-in-flight",
}
"""Each fault, and the case that is meant to find it."""

LIFETIME = 2.0
SECRET = b"0123456789abcdef0123456789abcdef"
ACCOUNTS = {"Bearer alice": "alice", "Bearer bob": "bob"}


class Shop:
    """The charges, and the records of the keys."""

    def __init__(self, folder: Path, faults: frozenset[str]) -> None:
        unknown = faults - set(FAULTS)
        assert not unknown, unknown
        self.faults = faults
        self.lock = threading.Condition()
        self.claimed: set[tuple[str, ...]] = set()
        file = str(folder / "shop.db")
        here = {"check_same_thread": False, "isolation_level": None}
        memory = sqlite3.connect(":memory:", **here)  # type: ignore[call-overload]
        disk = sqlite3.connect(file, **here)  # type: ignore[call-overload]
        self.charges = memory if "keeps-effects-in-memory" in faults else disk
        self.records = memory if "keeps-records-in-memory" in faults else disk
        self.charges.execute(
            "create table if not exists charges (id integer primary key, who, amount)"
        )
        self.records.execute(
            "create table if not exists records (name primary key, asked, answer, at)"
        )

    def count(self) -> int:
        with self.lock:
            return int(self.charges.execute("select count(*) from charges").fetchone()[0])

    def recorded(self, name: tuple[str, ...]) -> tuple[str, dict[str, Any]] | None:
        row = self.records.execute(
            "select asked, answer, at from records where name = ?", (json.dumps(name),)
        ).fetchone()
        lifetime = 0.3 if "expires-too-soon" in self.faults else LIFETIME
        if row is None or time.time() - row[2] > lifetime:
            return None
        return row[0], json.loads(row[1])

    def record(self, name: tuple[str, ...], asked: str, answer: dict[str, Any]) -> None:
        self.records.execute(
            "insert or replace into records values (?, ?, ?, ?)",
            (json.dumps(name), asked, json.dumps(answer), time.time()),
        )

    def work(self, who: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """Charge; the transaction is left open for the record where both are on disk."""
        if wanted["amount"] < 0:
            return problem(402, "card-declined", "The card was declined")
        self.charges.execute("begin")
        row = self.charges.execute(
            "insert into charges (who, amount) values (?, ?)", (who, wanted["amount"])
        )
        body = json.dumps({"charge": row.lastrowid, "amount": wanted["amount"]})
        return {"status": 201, "body": body, "headers": {"Location": f"/charges/{row.lastrowid}"}}


def problem(status: int, slug: str, title: str, **headers: str) -> dict[str, Any]:
    document = {"type": f"https://shop.example/problems/{slug}", "title": title, "status": status}
    return {
        "status": status,
        "body": json.dumps(document),
        "headers": {
            "Content-Type": "application/problem+json",
            "Cache-Control": "no-store",
            **headers,
        },
    }


class Handler(BaseHTTPRequestHandler):
    """One request. `self.server.shop` is the shop."""

    protocol_version = "HTTP/1.1"
    timeout = 10
    NOTHING = object()
    early: object = None
    """What was looked up before the body was read."""

    def log_message(self, format: str, *args: Any) -> None:
        pass

    @property
    def shop(self) -> Shop:
        return self.server.shop  # type: ignore[attr-defined, no-any-return]

    def broken(self, fault: str) -> bool:
        return fault in self.shop.faults

    def do_GET(self) -> None:
        self.answer(
            {"status": 200, "body": json.dumps({"charges": self.shop.count()}), "headers": {}}
        )

    def do_PATCH(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        if self.path == "/keys":
            self.read()
            nonce = hashlib.sha256(str(time.time_ns()).encode()).hexdigest()[:16]
            key = f"{nonce}.{sign(nonce)}"
            return self.answer({"status": 201, "body": json.dumps({"keys": [key]}), "headers": {}})
        body = None
        if self.broken("claims-before-the-body"):
            with self.shop.lock:
                name = self.name(self.key() or "", b"")
                if name in self.shop.claimed:
                    self.read()
                    return self.answer(problem(409, "in-flight", "In flight"))
                self.shop.claimed.add(name)
            body = self.read()
            if body is None:
                return None
            with self.shop.lock:
                self.shop.claimed.discard(name)
        if self.broken("runs-beside-a-slow-upload"):
            with self.shop.lock:
                kept = self.shop.recorded(self.name(self.key() or "", b""))
            self.early = Handler.NOTHING if kept is None else kept
        body = self.read() if body is None else body
        if body is None:
            self.close_connection = True
            return None
        return self.answer(self.decide(body))

    def decide(self, body: bytes) -> dict[str, Any]:
        who = ACCOUNTS.get(self.headers.get("Authorization", ""))
        key = self.key()
        if who is None and self.broken("replays-before-authentication") and key:
            kept = self.shop.recorded(("", key))
            if kept is not None:
                return kept[1]
        if who is None:
            return problem(401, "unauthorized", "Who are you?")
        wanted = json.loads(body)
        if key is None:
            if self.broken("fails-without-a-key"):
                return problem(500, "oops", "KeyError")
            if self.broken("runs-without-a-key"):
                return self.run(who, wanted, None, "")
            said = problem(400, "key-missing", "Idempotency-Key is missing")
            if self.broken("lies-about-its-status"):
                said["body"] = said["body"].replace("400", "401")
            return said
        if refused := self.refusal(key):
            return refused
        if not key and self.broken("ignores-an-empty-key"):
            return self.run(who, wanted, None, "")
        return self.once(who, wanted, key, body)

    def once(self, who: str, wanted: dict[str, Any], key: str, body: bytes) -> dict[str, Any]:
        name = self.name(key, body)
        asked = self.asked(body)
        kept = None if self.early is Handler.NOTHING else self.claim(name, asked)
        if kept is not None:
            return kept
        try:
            time.sleep(0.03)
            return self.run(who, wanted, name, asked)
        finally:
            with self.shop.lock:
                if not (self.broken("sticks-after-a-failure") and wanted["amount"] < 0):
                    self.shop.claimed.discard(name)
                self.shop.lock.notify_all()

    def claim(self, name: tuple[str, ...], asked: str) -> dict[str, Any] | None:
        """Win the right to run (None), or return the answer to give instead."""
        shop = self.shop
        with shop.lock:
            if self.broken("runs-again"):
                return None
            waiting = name in shop.claimed
            if waiting and self.broken("fails-under-duplicates"):
                return problem(500, "oops", "IntegrityError")
            if waiting and not self.broken("runs-duplicates"):
                if not shop.lock.wait_for(lambda: name not in shop.claimed, 0.5):
                    return problem(409, "in-flight", "In flight", **{"Retry-After": "1"})
            kept = shop.recorded(name)
            if kept is None:
                shop.claimed.add(name)
                return None
            if kept[0] != asked:
                return problem(422, "key-reused", "The key was used for another request")
            return self.replay(kept[1])

    def replay(self, kept: dict[str, Any]) -> dict[str, Any]:
        answer = {**kept, "headers": {**kept["headers"], "Idempotent-Replayed": "true"}}
        if self.broken("changes-the-status") and kept["status"] == 201:
            answer["status"] = 200
        if self.broken("changes-the-body"):
            answer["body"] = json.dumps(json.loads(kept["body"]), indent=1)
        if self.broken("loses-the-location"):
            answer["headers"].pop("Location", None)
        return answer

    def run(
        self, who: str, wanted: dict[str, Any], name: tuple[str, ...] | None, asked: str
    ) -> dict[str, Any]:
        shop = self.shop
        if self.broken("forgets-when-nobody-listens"):
            time.sleep(0.1)
        with shop.lock:
            answer = shop.work(who, wanted)
            in_one = shop.charges is shop.records and not self.broken("commits-before-the-record")
            if shop.charges.in_transaction and not in_one:
                shop.charges.execute("commit")
                if self.broken("commits-before-the-record"):
                    time.sleep(0.15)
            gone = self.broken("forgets-when-nobody-listens") and self.hung_up()
            kept = answer["status"] < 400 or self.broken("answers-without-doing")
            if name is not None and kept and not gone:
                stored = {**answer, "status": 201} if answer["status"] > 400 else answer
                shop.record(name, asked, stored)
                if self.broken("replays-before-authentication"):
                    shop.record(("", name[-1]), asked, answer)
            if shop.charges.in_transaction:
                shop.charges.execute("commit")
        return answer

    def hung_up(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def key(self) -> str | None:
        values = self.headers.get_all("Idempotency-Key") or []
        if not values:
            return None
        key = ",".join(dict.fromkeys(values)) if not self.broken("fails-on-two-keys") else values[0]
        if not self.broken("runs-quoted-keys-twice") and len(key) > 1 and key[0] == key[-1] == '"':
            key = key[1:-1]
        if self.broken("truncates-keys"):
            key = key[:255]
        return key.lower() if self.broken("ignores-case") else key

    def refusal(self, key: str) -> dict[str, Any] | None:
        said = ""
        longest = 200 if self.broken("fails-on-a-long-key") else 255
        if len(key) > longest:
            said = "fails-on-a-long-key" if len(key) < 300 else "fails-on-an-overlong-key"
        elif ('"' in key and not self.broken("runs-quoted-keys-twice")) or not key.isascii():
            said = "fails-on-a-malformed-key"
        elif "," in key or len(self.headers.get_all("Idempotency-Key") or []) > 1:
            said = "fails-on-two-keys"
        elif not key:
            said = "" if self.broken("ignores-an-empty-key") else "empty"
        elif "." in key and not self.broken("accepts-forged-keys"):
            nonce, _, signature = key.partition(".")
            said = "" if hmac.compare_digest(signature, sign(nonce)) else "forged"
        if not said or (said == "fails-on-an-overlong-key" and self.broken("truncates-keys")):
            return None
        if self.broken(said):
            return problem(500, "oops", "DataError")
        return problem(400, "key-invalid", "Idempotency-Key is not valid")

    def name(self, key: str, body: bytes) -> tuple[str, ...]:
        """What a record is filed under."""
        who = (
            "" if self.broken("leaks-to-another-caller") else self.headers.get("Authorization", "")
        )
        if self.broken("does-not-look-at-the-key"):
            key = hashlib.sha256(body).hexdigest()
        if self.broken("runs-another-body"):
            return (who, str(json.loads(body or b'{"amount":0}')["amount"]), key)
        if self.broken("runs-the-same-json"):
            return (who, "reordered" if b"\n" in body else "", key)
        if self.broken("runs-quoted-keys-twice") and key.startswith('"'):
            return (who, str(time.time_ns()), key)
        return (who, key)

    def asked(self, body: bytes) -> str:
        """The fingerprint."""
        path = "" if self.broken("replays-on-another-path") else self.path
        method = "" if self.broken("replays-to-another-method") else self.command
        if self.broken("replays-to-another-body") or self.broken("answers-without-doing"):
            body = b""
        return hashlib.sha256(f"{method} {path} ".encode() + body).hexdigest()

    def read(self) -> bytes | None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        return body if len(body) == length else None

    def answer(self, answer: dict[str, Any]) -> None:
        body = answer["body"].encode()
        headers = {"Content-Type": "application/json", **answer["headers"]}
        self.send_response(answer["status"])
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def sign(nonce: str) -> str:
    return hmac.new(SECRET, nonce.encode(), "sha256").hexdigest()[:16]


class Server(ThreadingHTTPServer):
    """The server; `port` 0 chooses one."""

    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = True

    def __init__(self, port: int, folder: Path, faults: frozenset[str]) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.shop = Shop(folder, faults)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients hang up on purpose


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--faults", nargs="*", default=[])
    given = parser.parse_args()
    Server(given.port, given.folder, frozenset(given.faults)).serve_forever()
