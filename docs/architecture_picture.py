"""Draws the packages of `src/semel` on floors, from their imports.

A box stands above all that it imports; the two largest show the floors within. An arrow is left out
where others lead the same way. `python docs/generate.py` writes the picture, and a test compares.
"""

from __future__ import annotations

import html
from collections import defaultdict
from functools import cache
from itertools import pairwise

from docs.imports import modules

Graph = dict[str, set[str]]

OPENED = ("stores", "web")
"""Packages whose own floors are shown."""
WIDTH, LINE, GAP, FLOOR = 1000.0, 17.0, 26.0, 46.0
STYLE = """
.box{fill:#eef3fb;stroke:#4b7bec}.name{font-weight:600;fill:#1d2733}.part{fill:#4a5564}
.arrow{fill:none;stroke:#7b8794;stroke-width:1.3}.head{fill:#7b8794}.ground{fill:#fff}
@media(prefers-color-scheme:dark){.box{fill:#223047;stroke:#6c97ff}.name{fill:#eef2f7}
.part{fill:#b6c1cf}.arrow{stroke:#8b98a8}.head{fill:#8b98a8}.ground{fill:#1e2129}}
""".replace("\n", "")


def parts(package: str) -> Graph:
    """Return the direct parts of a package, each with those that it imports."""
    start = f"{package}."
    depth = package.count(".") + 1
    graph: Graph = {}
    for name, module in modules().items():
        if name.startswith(start):
            part = name.split(".")[depth]
            graph.setdefault(part, set()).update(
                other.split(".")[depth] for other in module.imports if other.startswith(start)
            )
    return {part: imported - {part} for part, imported in sorted(graph.items())}


def floors(graph: Graph) -> dict[str, int]:
    """Return the floor of each part: one above the highest that it imports. There is no circle."""

    @cache
    def floor(part: str) -> int:
        return 1 + max((floor(other) for other in graph[part]), default=-1)

    return {part: floor(part) for part in graph}


def reduced(graph: Graph) -> Graph:
    """Leave out arrows that a way through other parts makes plain."""

    @cache
    def below(part: str) -> frozenset[str]:
        return frozenset(graph[part]).union(*map(below, graph[part]))

    return {
        part: {
            other
            for other in imported
            if not any(other in below(via) for via in imported - {other})
        }
        for part, imported in graph.items()
    }


def written(part: str) -> list[str]:
    """Return the lines of a box."""
    if part not in OPENED:
        return [part]
    rows: dict[int, list[str]] = defaultdict(list)
    for inner, floor in floors(parts(f"semel.{part}")).items():
        rows[floor].append(inner)
    return [part, *("  ".join(rows[floor]) for floor in sorted(rows, reverse=True))]


class Layout:
    """Where the boxes stand: floors from the ground up, arrows between the boxes of each floor."""

    def __init__(self, graph: Graph) -> None:
        self.lines = {part: written(part) for part in graph}
        self.floor: dict[str, int] = floors(graph)
        self.ways: list[list[str]] = []
        self.rows: list[list[str]] = [[] for _ in range(max(self.floor.values()) + 1)]
        for part in graph:
            self.rows[self.floor[part]].append(part)
        for part, imported in reduced(graph).items():
            for other in sorted(imported):
                self.ways.append([part, *self._corridor(part, other), other])
        self.near: dict[str, list[str]] = defaultdict(list)
        for way in self.ways:
            for upper, lower in pairwise(way):
                self.near[upper].append(lower)
                self.near[lower].append(upper)
        self.x: dict[str, float] = {}
        self._place()
        self.y: dict[int, float] = {}
        self.height = 20.0
        for number in reversed(range(len(self.rows))):
            self.y[number] = self.height + self.half(number)
            self.height += 2 * self.half(number) + FLOOR
        self.height += 20.0 - FLOOR

    def _corridor(self, part: str, other: str) -> list[str]:
        """Keep a place free on each floor between, for the arrow to pass."""
        places = []
        for number in range(self.floor[part] - 1, self.floor[other], -1):
            place = f"{part}>{other}@{number}"
            self.rows[number].append(place)
            places.append(place)
        return places

    def wide(self, part: str) -> float:
        """Return the width of a box, or of a place that is kept free."""
        if part not in self.lines:
            return 10.0
        return max(7.2 * len(line) for line in self.lines[part]) + 28.0

    def high(self, part: str) -> float:
        """Return the height of a box."""
        return LINE * len(self.lines.get(part, ())) + 16.0

    def half(self, number: int) -> float:
        """Return half the height of a floor."""
        return max(map(self.high, self.rows[number])) / 2

    def _place(self) -> None:
        for row in self.rows:
            self._spread(row, dict.fromkeys(row, WIDTH / 2))
        for turn in range(40):
            for row in self.rows if turn % 2 else reversed(self.rows):
                wanted = {
                    part: sum(self.x[other] for other in self.near[part]) / len(self.near[part])
                    if self.near[part]
                    else self.x[part]
                    for part in row
                }
                if turn < 30:
                    row.sort(key=lambda part: (wanted[part], part))
                self._spread(row, wanted)

    def _spread(self, row: list[str], wanted: dict[str, float]) -> None:
        """Put a row's boxes as near to where they want to be as their widths let them."""
        edge = 0.0
        for part in row:
            self.x[part] = max(wanted[part], edge + self.wide(part) / 2)
            edge = self.x[part] + self.wide(part) / 2 + GAP
        edge = WIDTH
        for part in reversed(row):
            self.x[part] = min(self.x[part], edge - self.wide(part) / 2)
            edge = self.x[part] - self.wide(part) / 2 - GAP


def picture() -> str:
    """Return the SVG."""
    layout = Layout(parts("semel"))
    left = min(layout.x[part] - layout.wide(part) / 2 for part in layout.x) - 20
    right = max(layout.x[part] + layout.wide(part) / 2 for part in layout.x) + 20
    seen = f"{left:.0f} 0 {right - left:.0f} {layout.height:.0f}"
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{seen}"'
        ' font-family="sans-serif" font-size="13" role="img"'
        ' aria-label="The packages of Semel and what they import"><style>',
        STYLE,
        '</style><defs><marker id="h" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
        ' markerHeight="7" orient="auto"><path class="head" d="M0 0L8 4L0 8z"/></marker></defs>'
        '<rect class="ground" x="-999" width="9999" height="9999"/>',
    ]
    drawn += [_arrow(layout, way) for way in layout.ways]
    drawn += [_box(layout, part) for part in layout.lines]
    return "".join([*drawn, "</svg>\n"])


def _arrow(layout: Layout, way: list[str]) -> str:
    start, end = way[0], way[-1]
    number = layout.floor[start]
    x, y = layout.x[start], layout.y[number] + layout.half(number)
    path = f"M{x:.0f} {layout.y[number] + layout.high(start) / 2:.0f}L{x:.0f} {y:.0f}"
    for place in way[1:]:
        last = place == end
        number = layout.floor[end] if last else int(place.rpartition("@")[2])
        half = layout.half(number)
        to, top = layout.x[place], layout.y[number] - half - 10
        path += f"C{x:.0f} {y + 26:.0f} {to:.0f} {top - 26:.0f} {to:.0f} {top:.0f}"
        x, y = to, layout.y[number] + (-layout.high(end) / 2 - 2 if last else half)
        path += f"L{x:.0f} {y:.0f}"
    return f'<path class="arrow" marker-end="url(#h)" d="{path}"/>'


def _box(layout: Layout, part: str) -> str:
    wide, high = layout.wide(part), layout.high(part)
    x, top = layout.x[part], layout.y[layout.floor[part]] - high / 2
    texts = [
        f'<text class="{"part" if number else "name"}" x="{x:.0f}"'
        f' y="{top + 20 + LINE * number:.0f}" text-anchor="middle" xml:space="preserve">'
        f"{html.escape(line)}</text>"
        for number, line in enumerate(layout.lines[part])
    ]
    return (
        f'<rect class="box" x="{x - wide / 2:.0f}" y="{top:.0f}" width="{wide:.0f}"'
        f' height="{high:.0f}" rx="8"/>' + "".join(texts)
    )
