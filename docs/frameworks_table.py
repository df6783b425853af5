"""The table of frameworks in `docs/frameworks.md`.

A cell says yes because `tests/frameworks/test_table.py`, which takes its parameters from here, has
a test for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

COLUMNS = {
    "plain": "plain",
    "atomic": "atomic",
    "raised": "raised 4xx",
    "caller": "caller",
    "missing": "400 without key",
    "openapi": "OpenAPI",
}
"""The columns; `test_{name}` is the test of each."""

RUNTIME = ("plain", "atomic", "raised", "caller", "missing")
NO_DOCUMENT = {"openapi": "–"}


@dataclass(frozen=True)
class Framework:
    """A row of the table."""

    name: str
    application: str
    """The module of its application, `tests/http/frameworks/of_{application}.py`."""
    server: Literal["asgi", "wsgi", "django"]
    """What its application is served through in the tests."""
    guide: str
    """Its guide, below `docs/`."""
    wiring: str
    """The line that puts Semel into an application."""
    cells: tuple[str, ...] = RUNTIME
    """The columns that say yes."""
    others: dict[str, str] = field(default_factory=lambda: NO_DOCUMENT)
    """What the other columns say."""
    marks: bool = True
    """Whether `@idempotency.route` is understood; rules are given by pattern everywhere."""

    @property
    def graphql(self) -> bool:
        return self.application == "strawberry"


ALL = (*RUNTIME, "openapi")
_INIT_APP = "`init_app(app, idempotency, caller=…)`"
_ASYNC = "guides/async-frameworks.md"
_WSGI = "guides/asgi-wsgi.md#bottle-falcon-and-pyramid"
_DJANGO = "`IdempotencyMiddleware` in `MIDDLEWARE`"
FRAMEWORKS = (
    Framework("FastAPI", "fastapi", "asgi", "guides/fastapi.md", _INIT_APP, ALL, {}),
    Framework("Starlette", "starlette", "asgi", "guides/fastapi.md", _INIT_APP),
    Framework("Flask", "flask", "wsgi", "guides/flask.md", _INIT_APP),
    Framework("Flask-RESTful", "flask_restful", "wsgi", "guides/flask.md", _INIT_APP),
    Framework(
        *("Litestar", "litestar", "asgi", "guides/litestar.md"),
        "`plugins=[SemelPlugin(idempotency, caller=…)]`",
        ALL,
        {},
    ),
    Framework("Quart", "quart", "asgi", "guides/quart.md", _INIT_APP),
    Framework("Sanic", "sanic", "asgi", _ASYNC, _INIT_APP),
    Framework("BlackSheep", "blacksheep", "asgi", _ASYNC, _INIT_APP),
    Framework("Falcon (ASGI)", "falcon", "asgi", _ASYNC, _INIT_APP),
    Framework(
        *("Falcon (WSGI)", "falcon_wsgi", "wsgi", _WSGI),
        "`app = init_app(app, idempotency, caller=…)`",
        marks=False,
    ),
    Framework("Bottle", "bottle", "wsgi", _WSGI, _INIT_APP),
    Framework(
        *("Pyramid", "pyramid", "wsgi", _WSGI),
        "`make_wsgi_app(config, idempotency, caller=…)`",
        marks=False,
    ),
    Framework(*("Django", "django", "django", "guides/django.md"), f'{_DJANGO}, `SEMEL["caller"]`'),
    Framework(
        *("Django REST framework", "rest_framework", "django", "guides/django.md"),
        f"{_DJANGO}, its own authenticators",
    ),
    Framework(
        *("Django Ninja", "ninja", "django", "guides/django.md"),
        f"{_DJANGO}, its own `auth`",
        ALL,
        {},
    ),
    Framework(
        *("Strawberry GraphQL, in FastAPI", "strawberry", "asgi", f"{_ASYNC}#graphql-strawberry"),
        f"{_INIT_APP}, `extensions=[SemelExtension]`",
        ("plain", "atomic", "caller", "missing"),
        {"raised": "– (2)", "openapi": "–"},
    ),
)


def claimed() -> set[tuple[str, str]]:
    """Return the cells that say yes, each as an application's name and a column's."""
    return {(row.application, column) for row in FRAMEWORKS for column in row.cells}


def table() -> str:
    """Return the table as Markdown."""
    lines = [
        f"| framework | Semel in it | {' | '.join(COLUMNS.values())} |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for row in FRAMEWORKS:
        said = [_said(row, column) for column in COLUMNS]
        lines.append(f"| [{row.name}]({row.guide}) | {row.wiring} | {' | '.join(said)} |")
    return "\n".join(lines)


def _said(row: Framework, column: str) -> str:
    if column not in row.cells:
        return row.others[column]
    return "yes (1)" if row.graphql and column == "missing" else "yes"
