"""`semel check`: its exit statuses, what it says beforehand, and what it refuses."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from semel.checker.target import BadTarget, Effects, Target, read_header, render
from tests.checker.test_faults import serve

__all__ = ["serve"]
EFFECTS = "GET /charges/count charges"
AUTHORIZATION = ["--header", "Authorization: $TOKEN"]


def check(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "semel.cli", "check", *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        env={**os.environ, "TOKEN": "Bearer alice", "COLUMNS": "120", **variables},
        check=False,
    )


@pytest.fixture
def words(serve: object) -> list[str]:
    port = serve()  # type: ignore[operator]
    return [
        f"http://127.0.0.1:{port}/charges", "--body", '{"amount": 5}', "--effects", EFFECTS,
        *AUTHORIZATION,
    ]  # fmt: skip


def test_without_faults_the_status_is_0_and_the_reports_are_written(
    words: list[str], tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("r.json", "r.xml", "r.html")]
    options = [
        w for f, o in zip(files, ("--json", "--junit", "--html"), strict=True) for w in (o, str(f))
    ]
    done = check(*words, *options, "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"has at most \d+ effects", done.stderr)
    assert "score" in done.stdout
    assert json.loads(files[0].read_text())["tally"]["fault"] == 0
    assert all("Bearer alice" not in file.read_text() for file in files)


def test_with_a_fault_the_status_is_1(serve: object) -> None:
    port = serve("runs-again")  # type: ignore[operator]
    done = check(
        f"http://127.0.0.1:{port}/charges", "--body", '{"amount": 5}', *AUTHORIZATION,
        "--effects", EFFECTS, "--yes",
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 effects" in done.stdout


def test_without_yes_and_without_a_terminal_nothing_is_sent(words: list[str]) -> None:
    done = check(*words)
    assert done.returncode == 2
    assert "pass --yes" in done.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--body", '{"amount": -1}'], "402"),
        (["--effects", "GET /charges/count nothing"], "nothing is not in"),
        (["--header", "Authorization: Bearer in-the-open"], "environment variable"),
        (["--other-auth", "Authorization: $NOT_SET_AT_ALL"], "NOT_SET_AT_ALL is not set"),
        (["--expires", "soon"], "--expires: give a time"),
        (["--concurrency", "5000"], "--concurrency: give 2 to 50"),
        (["--command", "false"], "is not ours to kill"),
    ],
)
def test_what_cannot_be_run_says_why_with_status_2(
    words: list[str], more: list[str], said: str
) -> None:
    done = check(*words, *more, "--yes")
    assert done.returncode == 2, done.stdout
    assert said in done.stderr


def test_nobody_there_is_status_2() -> None:
    done = check("http://127.0.0.1:1/x", "--yes")
    assert (done.returncode, "nobody listens" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("spec", "body", "number"),
    [
        ("GET /n", b"7", 7),
        ("GET /n", b'{"charges": 7}', 7),
        ("GET /n", b"[1, 2, 3]", 3),
        ("GET /n data.items", b'{"data": {"items": [1, 2]}}', 2),
        ("GET /n 1.total", b'[0, {"total": 9}]', 9),
    ],
)
def test_effects_are_read_from_numbers_and_lists(spec: str, body: bytes, number: int) -> None:
    assert Effects.parse(spec).read(body) == number


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"a": 1, "b": 2}', b"true", b"1.5", b'"7"'])
def test_what_is_no_count_is_refused(body: bytes) -> None:
    with pytest.raises(BadTarget, match="--effects"):
        Effects.parse("GET /n").read(body)


def test_placeholders_are_new_for_each_operation() -> None:
    assert render('{"n": {{n}}}', 3) == b'{"n": 3}'
    assert render("{{uuid}}", 1) != render("{{uuid}}", 1)
    with pytest.raises(BadTarget, match="mane"):
        render("{{mane}}", 1)


def test_another_body_is_made_within_the_kinds_of_its_values() -> None:
    target = Target("http://127.0.0.1/x", body='{"a": "tea", "b": 2}')
    assert json.loads(target.other(b'{"a": "tea", "b": 2}', 1) or b"") == {"a": "tea", "b": 3}
    assert target.other(b"[]", 1) is None
    assert target.other(b"no json", 1) is None


def test_a_variable_can_stand_within_a_value_and_is_remembered_as_a_secret() -> None:
    header, secrets = read_header("--header", "Authorization: Bearer ${T}", {"T": "abc"})
    assert header == ("Authorization", b"Bearer abc")
    assert secrets == [("T", "abc")]
    with pytest.raises(BadTarget, match="cannot carry"):
        read_header("--header", "X-A: $T", {"T": "a\r\nX-B: c"})


def test_the_limit_of_requests_holds(words: list[str]) -> None:
    done = check(*words, "--max-requests", "30", "--yes")
    assert "--max-requests" in done.stdout


def test_a_count_that_fails_midway_leaves_its_case_out_and_not_the_report(serve: object) -> None:
    port = serve()  # type: ignore[operator]
    done = check(
        f"http://127.0.0.1:{port}/charges", "--body", '{"amount": 5}', *AUTHORIZATION,
        "--effects", "GET /charges/count charges", "--max-requests", "8", "--yes",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not run" in done.stdout


@pytest.mark.parametrize(("answer", "status"), [("n\n", 2), ("y\n", 0)])
def test_on_a_terminal_it_asks(words: list[str], answer: str, status: int) -> None:
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer.encode())
        asked = subprocess.run(
            [sys.executable, "-m", "semel.cli", "check", *words],
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "TOKEN": "Bearer alice"},
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert "Go on?" in asked.stderr
    assert asked.returncode == status, asked.stderr
    assert ("nothing was sent" in asked.stderr) == (status == 2)
