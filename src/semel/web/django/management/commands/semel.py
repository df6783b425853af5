"""`manage.py semel`: records, their settlement and sweeping, checks, and the tables."""

from __future__ import annotations

import json
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error, connections, transaction

from semel.core.commands import Steps, StoreError
from semel.core.record import UnreadableRecord, decode_response
from semel.stores import StoreSetupError
from semel.stores.django.connection import DjangoConnection
from semel.stores.django.store import DjangoStore
from semel.web.django import operators
from semel.web.django.conf import configured
from semel.web.django.models import StoredRecord
from semel.web.django.tables import schema_of


class Command(BaseCommand):
    """Looks after idempotency records."""

    help = "Idempotency records: sweep, show, park, release, settle, check, migrate."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the subcommands."""
        commands = parser.add_subparsers(dest="command", required=True)
        commands.add_parser("sweep", help="clear expired answers and old tombstones away")
        commands.add_parser("check", help="check settings, middleware, database and tables")
        migrate = commands.add_parser("migrate", help="make what the tables of DjangoStore lack")
        migrate.add_argument("--database", help="alias of the database; SEMEL's unless given")
        migrate.add_argument("--sql", action="store_true", help="print the SQL and change nothing")
        helped = {
            "show": "show a record and its steps",
            "park": "park an operation that is in flight",
            "release": "a parked operation was not done: free its key",
            "settle": "a parked operation was done: give its answer",
        }
        for name, text in helped.items():
            command = commands.add_parser(name, help=text)
            command.add_argument("key", help="a reference, a key's hash, or with --scope a raw key")
            command.add_argument("--scope", help="whose key it is, such as user:42")
            if name == "settle":
                command.add_argument("--status", type=int, required=True)
                command.add_argument("--body", default="{}", help="JSON")
            if name == "park":
                command.add_argument("--reason", default="parked by manage.py semel")

    def handle(self, *args: Any, **options: Any) -> None:
        """Carry one out. Raises `CommandError`."""
        try:
            getattr(self, f"_{options['command']}")(options)
        except (StoreError, StoreSetupError, ImproperlyConfigured, Error, ValueError) as error:
            raise CommandError(str(error)) from error

    def _sweep(self, options: Any) -> None:
        self.stdout.write(f"cleared away: {configured().idempotency.sweep()}")

    def _check(self, options: Any) -> None:
        call_command("check", tags=["semel"], stdout=self.stdout, stderr=self.stderr)
        idempotency = configured().idempotency
        idempotency.store.start()
        for line in idempotency.promises():
            self.stdout.write(line)

    def _migrate(self, options: Any) -> None:
        alias = options["database"] or self._alias()
        if alias not in connections:
            raise CommandError(f"--database {alias}: DATABASES has {', '.join(connections)}")
        connection = connections[alias]
        schema = schema_of(connection)
        with transaction.atomic(using=alias):
            make = schema.plan if options["sql"] else schema.migrate
            statements = make(DjangoConnection(connection))
        for statement in statements:
            self.stdout.write(f"{statement};")
        if not statements:
            self.stdout.write("-- the tables lack nothing")

    def _alias(self) -> str:
        store = configured().idempotency.store
        if not isinstance(store, DjangoStore):
            raise CommandError(
                f"SEMEL's store is a {type(store).__name__}, which looks after its own tables; to"
                " make DjangoStore's all the same, say --database ALIAS"
            )
        return store.alias

    def _show(self, options: Any) -> None:
        record = self._record(options)
        said: dict[str, Any] = {
            "reference": record.reference,
            "key_hash": record.key_hash,
            "state": operators.state(record),
            "token": record.token,
            "attempt": record.attempt,
            "lease_until": record.lease_until,
            "due_at": record.due_at,
            "reason": record.reason,
        }
        if record.answer is not None:
            try:
                answer = decode_response(bytes(record.answer))
            except UnreadableRecord as error:
                raise CommandError(str(error)) from error
            said["status"] = answer.status
            said["body_bytes"] = len(answer.body) if answer.body is not None else None
        steps = configured().idempotency.store.execute(Steps(record.key))
        assert isinstance(steps, dict)
        said["steps"] = {n: "begun" if r is None else "done" for n, r in steps.items()}
        self.stdout.write(json.dumps(said, indent=2))

    def _park(self, options: Any) -> None:
        record = self._record(options)
        if not operators.park(configured().idempotency, record, options["reason"]):
            raise CommandError(f"{record} is {operators.state(record)}, so it cannot be parked")
        self.stdout.write(f"parked {record}")

    def _release(self, options: Any) -> None:
        self._settled(self._record(options), None)

    def _settle(self, options: Any) -> None:
        answer = operators.answer(options["status"], options["body"].encode())
        self._settled(self._record(options), answer)

    def _settled(self, record: StoredRecord, answer: Any) -> None:
        if not operators.settle(configured().idempotency, record, answer):
            raise CommandError(f"{record} is {operators.state(record)}, and not parked")
        self.stdout.write(f"{'released' if answer is None else 'settled'} {record}")

    def _record(self, options: Any) -> StoredRecord:
        wanted = operators.named(options["key"], options["scope"])
        idempotency = configured().idempotency
        if not operators.are_models(idempotency):
            kind = type(idempotency.store).__name__
            raise CommandError(f"SEMEL's store is a {kind}: only DjangoStore's tables are known")
        found = list(operators.records(idempotency).filter(wanted)[:2])
        if len(found) != 1:
            many = "there is no record of" if not found else "there are several records of"
            raise CommandError(f"{many} {options['key']}; give more of its hash, or --scope")
        record: StoredRecord = found[0]
        return record
