"""The report of a storm: a live view, a table, and a page with a picture."""

from __future__ import annotations

from html import escape
from pathlib import Path

from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from semel.demo.shops import ShopStore
from semel.demo.storm import Tally

COLOURS = {
    "charged": ("green", "#2e9e5b"),
    "replayed": ("cyan", "#2b8cbe"),
    "refused": ("yellow", "#c9a227"),
    "lost": ("bright_black", "#8a8f98"),
    "doubled": ("red", "#d1373f"),
}


def live(tally: Tally, now: float) -> Group:
    """Return what is shown while the storm goes on."""
    passed = min(now - tally.started, tally.seconds)
    table = Table.grid(padding=(0, 2))
    crashes = f", [bold red]{tally.crashes}[/] database crashes" if _crashes(tally) else ""
    table.add_row(
        f"[bold]{tally.requests:,}[/] requests",
        f"[bold]{tally.acknowledged:,}[/] of {len(tally.purchases):,} purchases answered",
    )
    table.add_row(
        f"[bold]{tally.answers['replayed']:,}[/] replays",
        f"[bold red]{tally.kills}[/] kills{crashes}",
    )
    title = "with Semel" if tally.protected else "without Semel"
    return Group(
        Text(f"storm {title}", style="bold"),
        ProgressBar(total=tally.seconds, completed=passed, width=60),
        table,
    )


def line(tally: Tally) -> str:
    """Return the same in one line, for an output that is no terminal."""
    name = "with Semel" if tally.protected else "without Semel"
    return (
        f"{name}: {tally.requests:,} requests, {tally.acknowledged:,} of"
        f" {len(tally.purchases):,} purchases answered, {tally.kills} kills"
        + (f", {tally.crashes} database crashes" if _crashes(tally) else "")
    )


def _crashes(tally: Tally) -> bool:
    return tally.store is ShopStore.POSTGRESQL


def rows(tally: Tally) -> list[tuple[str, int]]:
    """Return the figures of one storm, top to bottom."""
    answers = tally.answers
    refused = sum(n for name, n in answers.items() if name.startswith("refused"))
    failed = sum(n for name, n in answers.items() if name.startswith("status"))
    crashes = [("database crashes (stop -m immediate)", tally.crashes)]
    return [
        ("requests sent", tally.requests),
        ("servers killed (kill -9)", tally.kills),
        *(crashes if _crashes(tally) else []),
        ("responses lost or cut off", answers["response lost"] + answers["connection cut"]),
        ("replays", answers["replayed"]),
        ("refusals", refused),
        ("answered with a server error", failed),
        ("charges expected", len(tally.purchases)),
        ("charges made", tally.charged),
        ("charged twice or more", tally.doubled),
        ("acknowledged and lost", tally.lost),
        ("never answered", len(tally.purchases) - tally.acknowledged),
        ("wrong responses", tally.wrong),
    ]


SHOPS = {
    ShopStore.SQLITE: "One server, one SQLite file. The server is killed with"
    " <code>kill -9</code>.",
    ShopStore.POSTGRESQL: "Four servers behind a round-robin balancer, on PostgreSQL. Servers are"
    " killed with <code>kill -9</code>, the database with <code>pg_ctl stop -m immediate</code>.",
}
"""What the storm was against, as HTML."""

MUST_BE_ZERO = frozenset(
    {"charged twice or more", "acknowledged and lost", "never answered", "wrong responses"}
)


def table(tallies: list[Tally]) -> Table:
    """Return the storms side by side."""
    made = Table(title="The same storm, the same shop", title_style="bold")
    made.add_column("")
    for tally in tallies:
        made.add_column("with Semel" if tally.protected else "without Semel", justify="right")
    for index, (name, _) in enumerate(rows(tallies[0])):
        cells = []
        for tally in tallies:
            number = rows(tally)[index][1]
            style = ""
            if name in MUST_BE_ZERO:
                style = "bold red" if number else "bold green"
            cells.append(Text(f"{number:,}", style=style))
        made.add_row(name, *cells)
    return made


def bars(tallies: list[Tally], width: int = 36) -> Group:
    """Draw charges expected against charges made."""
    most = max(max(t.charged, len(t.purchases)) for t in tallies) or 1
    lines: list[Text] = []
    for tally in tallies:
        lines.append(Text("with Semel" if tally.protected else "without Semel", style="bold"))
        once = tally.charged - tally.doubled
        for name, parts in (
            ("expected", [(len(tally.purchases), "blue")]),
            ("charged ", [(once, "green"), (tally.doubled, "red")]),
        ):
            bar = Text(f"  {name} ")
            for number, colour in parts:
                cells = max(round(number / most * width), 1 if number else 0)
                bar.append("█" * cells, style=colour)
            bar.append(" " + " + ".join(f"{number:,}" for number, _ in parts if number))
            if len(parts) > 1 and parts[1][0]:
                bar.append(" charged again", style="red")
            lines.append(bar)
    return Group(*lines)


def write_html(tallies: list[Tally], path: Path) -> None:
    """Write the picture and the table as one self-contained page."""
    body = "".join(
        "<tr><td>{}</td>{}</tr>".format(
            escape(name),
            "".join(
                f'<td class="{_class(name, rows(t)[index][1])}">{rows(t)[index][1]:,}</td>'
                for t in tallies
            ),
        )
        for index, (name, _) in enumerate(rows(tallies[0]))
    )
    heads = "".join(f"<th>{'with Semel' if t.protected else 'without Semel'}</th>" for t in tallies)
    path.write_text(
        _PAGE.format(
            svg=svg(tallies),
            heads=heads,
            body=body,
            seconds=tallies[0].seconds,
            shop=SHOPS[tallies[0].store],
        ),
        encoding="utf-8",
    )


def _class(name: str, number: int) -> str:
    if name not in MUST_BE_ZERO:
        return ""
    return "bad" if number else "good"


def svg(tallies: list[Tally]) -> str:
    """Draw the two storms: charges expected, charges made, and those made again."""
    most = max(max(t.charged, len(t.purchases)) for t in tallies) or 1
    left, width, top = 92, 470, 34
    parts = []
    y = top
    for tally in tallies:
        title = "With Semel" if tally.protected else "Without Semel"
        parts.append(f'<text x="0" y="{y}" class="title">{title}</text>')
        once = tally.charged - tally.doubled
        for name, pieces in (
            ("expected", [(len(tally.purchases), "#4b7bec")]),
            ("charged", [(once, COLOURS["charged"][1]), (tally.doubled, COLOURS["doubled"][1])]),
        ):
            y += 14
            parts.append(f'<text x="{left - 10}" y="{y + 15}" class="name">{name}</text>')
            x = float(left)
            for number, colour in pieces:
                span = number / most * width
                parts.append(
                    f'<rect x="{x:.1f}" y="{y}" width="{span:.1f}" height="22" fill="{colour}"/>'
                )
                x += span
            said = " + ".join(f"{number:,}" for number, _ in pieces if number)
            again = " charged again" if len(pieces) > 1 and pieces[1][0] else ""
            parts.append(f'<text x="{x + 8:.1f}" y="{y + 15}">{said}{again}</text>')
            y += 16
        y += 52
    view = f'viewBox="0 0 {left + width + 210} {y - 20}"'
    return f'<svg {view} role="img" aria-label="charges expected and made">{"".join(parts)}</svg>'


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Semel: the storm</title>
<style>
:root {{ color-scheme: light dark; --ink: #1d2430; --paper: #fff; --line: #d8dde6 }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e8ebf0; --paper: #14181f; --line: #38404d }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 52rem; margin: 2.5rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.5rem; margin-bottom: 0 }}
svg {{ width: 100%; margin: 1.5rem 0; font: 13px system-ui, sans-serif; fill: var(--ink) }}
svg .title {{ font-weight: 600; font-size: 15px }} svg .name {{ text-anchor: end }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right }}
td:first-child, th:first-child {{ text-align: left }}
.good {{ color: #2e9e5b; font-weight: 600 }} .bad {{ color: #d1373f; font-weight: 600 }}
</style>
<h1>The same storm, the same shop</h1>
<p>{shop}</p>
<p>{seconds:g} seconds of retries, lost responses, double-clicks and crashes. Charges are counted in
the shop's own table.</p>
{svg}
<table><tr><th></th>{heads}</tr>{body}</table>
</html>
"""


def show(tallies: list[Tally], console: Console, path: Path) -> None:
    """Print the picture and the table, and write the page."""
    console.print()
    console.print(bars(tallies))
    console.print()
    console.print(table(tallies))
    write_html(tallies, path)
    console.print(f"HTML report: {path}")
