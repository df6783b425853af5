"""The command line: `semel demo`, `semel gateway`, `semel check`, `semel migrate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

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
    from semel.demo.cli import demo

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


if __name__ == "__main__":
    main()
