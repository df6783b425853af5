"""The demo's storm: real processes, real sockets, real kills."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from semel.demo import report
from semel.demo.sqlite import serve
from semel.demo.storm import Purchase, Tally, storm

pytestmark = pytest.mark.chaos


def test_with_semel_nothing_happens_twice_and_nothing_is_lost() -> None:
    tally = asyncio.run(storm(protected=True, clients=40, seconds=4, kill_every=0.5))
    print(dict(report.rows(tally)))
    assert tally.clean
    assert tally.charged == len(tally.purchases) >= 40  # everybody bought
    assert tally.kills >= 3
    assert tally.answers["replayed"]
    assert tally.answers["refused: other request"]


def test_without_semel_the_same_storm_charges_again() -> None:
    tally = asyncio.run(storm(protected=False, clients=40, seconds=3, kill_every=0.5))
    print(dict(report.rows(tally)))
    assert tally.doubled > 0
    assert not tally.clean


def test_the_shop_shows_what_is_going_on(tmp_path: Path) -> None:
    async def visit() -> tuple[str, dict[str, int], int]:
        async with serve(tmp_path, protected=True) as server:

            def get(path: str) -> bytes:
                with urllib.request.urlopen(server.url + path) as answer:
                    return bytes(answer.read())

            def buy() -> int:
                request = urllib.request.Request(
                    server.url + "charges",
                    json.dumps({"order_id": "o1", "amount": 500}).encode(),
                    {"Content-Type": "application/json", "Idempotency-Key": "k1"},
                )
                with urllib.request.urlopen(request) as answer:
                    return int(answer.status)

            statuses = {await asyncio.to_thread(buy) for _ in range(3)}
            page = (await asyncio.to_thread(get, "")).decode()
            count = json.loads(await asyncio.to_thread(get, "charges/count"))
            return page, count, statuses.pop()

    page, count, status = asyncio.run(visit())
    assert (count, status) == ({"charges": 1}, 201)
    assert "o1" in page


def made_up(*, protected: bool) -> Tally:
    tally = Tally(protected, 5, answers=Counter(charged=3, replayed=2))
    tally.purchases = [Purchase(f"o{n}", 1, f"k{n}", acknowledged=True) for n in range(3)]
    tally.charged, tally.doubled = (3, 0) if protected else (5, 2)
    return tally


def test_the_report_shows_the_same_figures_in_table_and_picture(tmp_path: Path) -> None:
    tallies = [made_up(protected=True), made_up(protected=False)]
    path = tmp_path / "report.html"
    report.write_html(tallies, path)
    page = path.read_text()
    assert "3 + 2 charged again" in page
    assert '<td class="good">0</td><td class="bad">2</td>' in page
    assert "http" not in page  # self-contained


@pytest.mark.parametrize("harm", ["doubled", "lost", "wrong"])
def test_a_storm_with_any_harm_is_not_clean(harm: str) -> None:
    tally = made_up(protected=True)
    assert tally.clean
    setattr(tally, harm, 1)
    assert not tally.clean


def test_a_purchase_without_an_answer_is_not_clean() -> None:
    tally = made_up(protected=True)
    tally.purchases[0].acknowledged = False
    assert not tally.clean
