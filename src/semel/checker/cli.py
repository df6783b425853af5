"""`semel check`: the command."""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

from rich.console import Console
from typer import Argument, Option, confirm

from semel.checker import terminal
from semel.checker.html import page
from semel.checker.report import Result
from semel.checker.runner import CannotRun, CheckLimits, examine, plan
from semel.checker.target import BadTarget, Effects, Target, read_header

CANNOT_RUN = 2


def check(
    url: Annotated[str, Argument(help="The operation: http://127.0.0.1:8000/charges")],
    method: Annotated[str, Option(help="Its method.")] = "POST",
    body: Annotated[
        str, Option(help="A body that works; {{uuid}} and {{n}} are new each time.")
    ] = "{}",
    effects: Annotated[
        str | None, Option(help="How effects are counted: 'GET /charges/count member'.")
    ] = None,
    header: Annotated[
        list[str] | None, Option(help="'Name: value'; $NAME is taken from the environment.")
    ] = None,
    other_auth: Annotated[list[str] | None, Option(help="The same for another caller.")] = None,
    no_auth: Annotated[
        bool, Option("--no-auth", help="Without the secrets of --header it responds with 401.")
    ] = False,
    other_body: Annotated[str | None, Option(help="Another body that works.")] = None,
    other_path: Annotated[str | None, Option(help="Another operation that takes the body.")] = None,
    other_method: Annotated[str | None, Option(help="Another method that takes it.")] = None,
    failing_body: Annotated[
        str | None, Option(help="A body that is answered with an error.")
    ] = None,
    keys_url: Annotated[str | None, Option(help="The path where the API issues keys.")] = None,
    expires: Annotated[
        str | None, Option(help="When keys expire, if that is soon: 2s, 1m.")
    ] = None,
    required: Annotated[bool, Option("--required", help="The API says a key is required.")] = False,
    quoted: Annotated[bool, Option("--quoted", help='Send keys as the draft does: "key".')] = False,
    command: Annotated[
        str | None, Option(help="How to start the server: it will be killed.")
    ] = None,
    kills: Annotated[int, Option(min=1, max=200, help="How often, with --command.")] = 8,
    concurrency: Annotated[int, Option(help="Duplicates at once.")] = 10,
    patience: Annotated[str, Option(help="How long to retry; longer than the lease.")] = "10s",
    timeout: Annotated[str, Option(help="For one request.")] = "15s",
    max_requests: Annotated[int, Option(min=1, max=100_000, help="In all.")] = 1000,
    max_seconds: Annotated[float, Option(min=1, help="In all.")] = 600,
    yes: Annotated[bool, Option("--yes", "-y", help="Do not ask.")] = False,
    json: Annotated[Path | None, Option(help="Write the report as JSON here.")] = None,
    junit: Annotated[Path | None, Option(help="Write it as JUnit's XML here.")] = None,
    html: Annotated[Path | None, Option(help="Write it as one page here.")] = None,
) -> None:
    """Examine an HTTP API, in any language: is it safe to retry?

    It says what it will send and asks. Exit status: 0 no faults, 1 faults found, 2 could not run.
    """
    secrets: list[tuple[str, str]] = []
    try:
        headers = _headers("--header", header, secrets)
        others = _headers("--other-auth", other_auth, secrets)
        target = Target(
            url,
            method,
            body,
            headers=headers,
            secrets=tuple(secrets),
            effects=Effects.parse(effects) if effects else None,
            other_body=other_body,
            other_path=other_path,
            other_method=other_method,
            other_caller=others,
            no_auth=no_auth,
            failing_body=failing_body,
            keys_path=keys_url,
            required=required or None,
            quoted=quoted,
            expires=_seconds("--expires", expires) if expires else None,
            together=concurrency,
            patience=_seconds("--patience", patience),
            kills=kills if command else 0,
        )
        limits = CheckLimits(max_requests, max_seconds, _seconds("--timeout", timeout))
    except BadTarget as error:
        _stop(str(error))
    _ask(target, limits, command, yes)
    console = Console()
    with console.status("") as status:

        def progress(result: Result) -> None:
            status.update(f"{result.verdict.outcome.value}: {result.case.title}")

        # `kill` too takes the server that was started along
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            report = examine(target, command=command, limits=limits, progress=progress)
        except KeyboardInterrupt:
            sys.exit(130)
        except (CannotRun, BadTarget) as error:
            _stop(target.masked(str(error)))
        except Exception:  # noqa: BLE001 - status 1 would say that the API has faults
            traceback.print_exc()
            _stop("this is a bug in the checker: please report it")
    terminal.show(report, console)
    for path, text in (
        (json, report.to_json),
        (junit, report.to_junit),
        (html, lambda: page(report)),
    ):
        if path is not None:
            _write(path, text())
    sys.exit(1 if report.faults else 0)


def _headers(
    option: str, given: Sequence[str] | None, secrets: list[tuple[str, str]]
) -> tuple[tuple[str, bytes], ...]:
    read = [read_header(option, text, os.environ) for text in given or ()]
    secrets += [secret for _, found in read for secret in found]
    return tuple(header for header, _ in read)


def _seconds(option: str, text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|)", text)
    if match is None:
        raise BadTarget(f"{option}: give a time such as 2s, 500ms or 1m, not {text!r}")
    return float(match[1]) * {"ms": 0.001, "s": 1, "": 1, "m": 60}[match[2]]


def _ask(target: Target, limits: CheckLimits, command: str | None, yes: bool) -> None:
    """Print what will be done, and ask for consent."""
    said = [
        f"This sends at most {limits.requests} requests, {target.together} at once at most, to"
        f" {target.method} {target.url}."
    ]
    elsewhere = [
        f"{target.other_method} {target.path}" if target.other_method else "",
        f"{target.method} {target.other_path}" if target.other_path else "",
        f"POST {target.keys_path}" if target.keys_path else "",
    ]
    if any(elsewhere):
        said.append(f"One request each goes to {', '.join(filter(None, elsewhere))}.")
    if target.effects:
        said.append(f"Effects are counted with GET {target.effects.path}.")
    said.append(
        f"An API without faults has at most {plan(target)} effects from them, each of which is real"
        " (a charge, an order, an e-mail); one with faults may have as many as there are requests."
    )
    if command:
        said.append(
            f"It starts `{command}`, kills it (kill -9) up to {target.kills + 1} times, stops it."
        )
    print(" ".join(said), file=sys.stderr)
    if yes:
        return
    if not sys.stdin.isatty():
        _stop("not a terminal: pass --yes")
    if not confirm("Go on?", err=True):
        _stop("nothing was sent")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        _stop(f"the report could not be written: {error}")


def _stop(why: str) -> NoReturn:
    print(f"semel check: {why}", file=sys.stderr)
    sys.exit(CANNOT_RUN)
