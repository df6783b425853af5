"""`semel demo`: the command."""

from __future__ import annotations

import asyncio
import functools
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from semel.demo.shops import ShopStore, open_shop

if TYPE_CHECKING:
    from semel.demo.storm import Tally


def demo(
    store: Annotated[
        ShopStore, Option(help="The database of the shop; postgresql: with four servers.")
    ] = ShopStore.SQLITE,
    clients: Annotated[int, Option(help="How many people shop at once.")] = 200,
    seconds: Annotated[float, Option(help="How long each storm lasts.")] = 20.0,
    kill_every: Annotated[float, Option(help="Seconds between two kills of a server.")] = 1.0,
    crash_every: Annotated[
        float, Option(help="Seconds between two crashes of the database (PostgreSQL).")
    ] = 5.0,
    report: Annotated[Path | None, Option(help="Where to write the HTML report.")] = None,
    only_semel: Annotated[bool, Option(help="Skip the storm without Semel.")] = False,
    serve: Annotated[bool, Option(help="No storm: run the shop and print its address.")] = False,
) -> None:
    """Open a storm of retries, crashes and double-clicks against a shop, with Semel and without.

    Exit status 0 only if with Semel nothing happened twice and nothing was lost.
    """
    try:
        import rich  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        sys.exit(f"semel demo needs its extra ({error.name} is missing): pip install 'semel[demo]'")
    from semel.demo.storm import storm
    from semel.testing.programs import ProgramMissing

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` too takes the servers along
    try:
        if serve:
            sys.exit(asyncio.run(_serve(store)))
        begin = functools.partial(
            storm,
            store=store,
            clients=clients,
            seconds=seconds,
            kill_every=kill_every,
            crash_every=crash_every,
        )
        killed = (
            f"the server is killed every {kill_every:g} s"
            if store is ShopStore.SQLITE
            else f"one of four servers is killed every {kill_every:g} s and PostgreSQL itself"
            f" crashes every {crash_every:g} s"
        )
        print(
            f"{clients} people shop for {seconds:g} s; responses get lost, buttons are clicked"
            f" twice, {killed}.\n",
            flush=True,
        )
        sys.exit(asyncio.run(_demo(begin, report, only_semel=only_semel)))
    except (ImportError, ProgramMissing) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


async def _demo(
    begin: Callable[..., Awaitable[Tally]], report: Path | None, *, only_semel: bool
) -> int:
    from rich.console import Console
    from rich.live import Live

    from semel.demo import report as reporting

    console = Console()
    tallies: list[Tally] = []
    for protected in (True,) if only_semel else (True, False):
        told = 0.0
        opening = "opening the shop" if console.is_terminal else ""
        with Live(opening, console=console, refresh_per_second=8) as shown:

            def progress(tally: Tally) -> None:
                nonlocal told
                now = time.monotonic()
                if console.is_terminal:
                    shown.update(reporting.live(tally, now))
                elif now - told > 2:
                    told = now
                    print(reporting.line(tally), flush=True)

            tallies.append(await begin(protected=protected, progress=progress))
    path = report or Path(tempfile.gettempdir()) / "semel-demo.html"
    reporting.show(tallies, console, path)
    ours = tallies[0]
    if ours.clean:
        console.print("\n[bold green]With Semel nothing happened twice and nothing was lost.[/]")
        return 0
    console.print("\n[bold red]With Semel something went wrong: see the table.[/]")
    return 1


async def _serve(store: ShopStore) -> int:
    async with open_shop(store, protected=True) as shop:
        print(f"the shop is open: {shop.url} (Ctrl-C closes it)", flush=True)
        await asyncio.Event().wait()
    return 0
