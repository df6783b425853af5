"""The command line: `semel demo`, `semel gateway`, `semel check`, `semel migrate`."""

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

from semel.demo.shops import Store

if TYPE_CHECKING:
    from semel.demo.storm import Tally

try:
    from typer import Argument as _Argument
    from typer import Option as _Option
except ImportError:  # pragma: no cover - said by main()
    _Argument = None  # type: ignore[assignment]
    _Option = None  # type: ignore[assignment]


def _option(text: str) -> object:
    return _Option(help=text) if _Option is not None else None


def main() -> None:
    """Run the command line; say what to install where it cannot."""
    try:
        import typer
    except ImportError:
        sys.exit("the semel command needs its extra: pip install 'semel[demo]'")
    from semel.checker.cli import check

    app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
    app.command()(demo)
    app.command()(gateway)
    app.command()(migrate)
    app.command()(check)
    app()


def _argument(text: str) -> object:
    return _Argument(help=text) if _Argument is not None else None


def migrate(
    url: Annotated[str, _argument("The store's URL: postgresql://…, sqlite:///….")],
    lock_timeout: Annotated[float, _option("Seconds to wait for other sessions' locks.")] = 5.0,
) -> None:
    """Bring a store's tables up to date. Safe beside running servers of the version before."""
    from semel.stores import StoreSetupError, open_store

    try:
        store = open_store(url)
        if hasattr(store, "migrate"):
            applied = store.migrate(lock_timeout)
        else:  # its tables are brought up to date whenever it is opened
            store.start()
            store.stop()
            applied = []
    except StoreSetupError as error:
        sys.exit(str(error))
    numbers = ", ".join(str(number) for number in applied)
    print(f"applied: {numbers}" if applied else "up to date")


def gateway(
    config: Annotated[
        Path | None, _option("A TOML file: upstream, store, routes, policies.")
    ] = None,
    upstream: Annotated[str | None, _option("The service: http://127.0.0.1:3000.")] = None,
    store: Annotated[str | None, _option("The store's URL: sqlite:///keys.db.")] = None,
    listen: Annotated[str | None, _option("Host and port; 127.0.0.1:8080 if not given.")] = None,
    workers: Annotated[int | None, _option("Processes that serve; 1 if not given.")] = None,
    check: Annotated[bool, _option("Say what every route promises, and stop.")] = False,
) -> None:
    """Give a service in any language idempotency keys: a reverse proxy in front of it.

    Exit status 2 where the settings make no sense.
    """
    try:
        from semel.gateway import serving, settings
        from semel.gateway.app import Gateway
        from semel.gateway.values import SettingsError
    except ImportError as error:
        sys.exit(str(error))
    from semel.stores import StoreSetupError

    given = {"upstream": upstream, "store": store, "listen": listen, "workers": workers}
    try:
        made = settings.load(config, **given) if config else settings.settings({}, **given)
        for line in Gateway(made).idempotency.promises():
            print(line)
        if check:
            return
        listening = serving.listen(made)
    except (SettingsError, StoreSetupError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{port} -> {made.upstream.url}", flush=True)
    serving.serve(made, listening)


def demo(
    store: Annotated[
        Store, _option("Where the shop keeps its books; postgresql: with four servers.")
    ] = Store.SQLITE,
    clients: Annotated[int, _option("How many people shop at once.")] = 200,
    seconds: Annotated[float, _option("How long each storm lasts.")] = 20.0,
    kill_every: Annotated[float, _option("Seconds between two kills of a server.")] = 1.0,
    crash_every: Annotated[
        float, _option("Seconds between two crashes of the database (PostgreSQL).")
    ] = 5.0,
    report: Annotated[Path | None, _option("Where the page with the picture goes.")] = None,
    only_semel: Annotated[bool, _option("Leave the storm without Semel out.")] = False,
    serve: Annotated[bool, _option("No storm: run the shop and show its address.")] = False,
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
            if store is Store.SQLITE
            else f"one of four servers is killed every {kill_every:g} s and PostgreSQL itself"
            f" crashes every {crash_every:g} s"
        )
        print(
            f"{clients} people shop for {seconds:g} s; answers get lost, buttons are clicked"
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


async def _serve(store: Store) -> int:
    from semel.demo.shops import open_shop

    async with open_shop(store, protected=True) as shop:
        print(f"the shop is open: {shop.url} (Ctrl-C closes it)", flush=True)
        await asyncio.Event().wait()
    return 0


if __name__ == "__main__":
    main()
