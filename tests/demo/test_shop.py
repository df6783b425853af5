"""The example shop's choice of a database."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from semel.demo.server import shop_folder


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(shop_folder()))
    return import_module("shop.database").database


def test_a_path_is_a_sqlite_file(database: Any, tmp_path: Path) -> None:
    assert database(str(tmp_path / "shop.db")).url == f"sqlite:///{tmp_path}/shop.db"


def test_a_postgresql_url_is_taken_as_it_is(database: Any) -> None:
    url = "postgresql://me@host/shop"
    assert database(url).url == url


@pytest.mark.parametrize("name", ["", "mysql://host/shop", "sqlite:///shop.db"])
def test_anything_else_is_refused_with_what_to_give(database: Any, name: str) -> None:
    with pytest.raises(ValueError, match="SHOP_DB: give a path or a postgresql:// URL"):
        database(name)
