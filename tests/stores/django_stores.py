"""DjangoStore for the contract, on each database that Django speaks to, by the test's clock."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp

from semel.stores import Store
from tests.django import project


@cache
def _alias(vendor: str) -> str:
    alias = f"contract_{vendor}"
    project.use(alias, project.database(vendor, alias, Path(mkdtemp())))
    return alias


def _made(vendor: str, folder: Path, clock: Callable[[], float]) -> Store:
    from semel.stores.django import DjangoStore

    alias = _alias(vendor)
    connection = project.connections[alias]
    with connection.cursor() as cursor:
        for table in ("semel_record", "semel_step"):
            cursor.execute(f"delete from {table}")
    project.forget_steps(alias)
    return DjangoStore(alias, clock=clock)


DJANGO_STORES = {f"django-{vendor}": partial(_made, vendor) for vendor in project.VENDORS}
