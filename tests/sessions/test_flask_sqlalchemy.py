"""Flask-SQLAlchemy's `db.session` in operations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, abort
from sqlalchemy import event, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_sqlalchemy import SQLAlchemy
from semel import Idempotency
from semel.core.policy import Policy
from semel.stores import StoreSetupError
from semel.stores.sqlalchemy import SQLAlchemyStore
from semel.web.flask import init_app, join_flask_sqlalchemy
from tests.sessions.places import SYNC, Place


class Base(DeclarativeBase):
    pass


class Shop:
    """A Flask application as people have them."""

    def __init__(self, place: Place, other: Place, *, late_commit: bool = False) -> None:
        self.place, self.other = place, other
        self.app = app = Flask("shop")
        app.config["SQLALCHEMY_DATABASE_URI"] = place.url
        app.config["SQLALCHEMY_BINDS"] = {"other": other.url}
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_timeout": 5}
        self.db: Any = SQLAlchemy(app)
        db = self.db

        class Thing(db.Model):  # type: ignore[misc]
            __tablename__ = "thing"
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str]

        class Other(db.Model):  # type: ignore[misc]
            __tablename__ = "thing"
            __bind_key__ = "other"
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str]

        self.user: Any = None
        self.committed: list[int] = []

        @app.before_request
        def who() -> None:
            self.user = db.session.scalars(select(Thing).where(Thing.name == "user")).first()

        @app.post("/things/<name>")
        def write(name: str) -> tuple[dict[str, str], int]:
            db.session.add(Thing(name=name))
            if name == "uncommitted":
                return {}, 200
            if not late_commit:
                db.session.commit()
            if name == "aborted":
                abort(422)
            if name == "failed":
                raise RuntimeError(name)
            if name == "rolled":
                db.session.add(Thing(name="undone"))
                db.session.flush()
                db.session.rollback()
            db.session.add(Thing(name=f"{name}, too"))
            if not late_commit:
                db.session.commit()
            return {"name": name}, 201

        @app.post("/rename/<name>")
        def rename(name: str) -> dict[str, str]:
            self.user.name = name
            db.session.commit()
            abort(409) if name == "taken" else None
            return {}

        @app.post("/other/<name>")
        def elsewhere(name: str) -> dict[str, str]:
            found = [one.name for one in db.session.scalars(select(Other))]
            db.session.add(Other(name=name))
            try:
                db.session.commit()
            except StoreSetupError as error:
                db.session.rollback()
                return {"refused": str(error), "read": ",".join(found)}
            return {}

        if late_commit:

            @app.after_request
            def commit(response: Any) -> Any:
                if response.status_code < 400:
                    db.session.commit()
                return response

        with app.app_context():
            self.engine = db.engine
            idempotency = Idempotency(
                SQLAlchemyStore(db.engine), policy=Policy(guarantee="atomic", shared=True)
            )
        join_flask_sqlalchemy(db, idempotency)
        init_app(app, idempotency)
        event.listen(
            db.session, "after_commit", lambda _: self.committed.append(len(place.things()))
        )

    def post(self, path: str, key: str | None = "k") -> Any:
        headers = {} if key is None else {"Idempotency-Key": key}
        return self.app.test_client().post(path, headers=headers)


@pytest.fixture(params=SYNC)
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Place, Place]]:
    made = Place(request.param, tmp_path), Place(request.param, tmp_path)
    yield made
    for one in made:
        one.looks.dispose()


def test_views_write_with_the_record(places: tuple[Place, Place]) -> None:
    shop = Shop(*places)
    for name, status in (("aborted", 422), ("failed", 500)):
        for _ in range(2):
            assert shop.post(f"/things/{name}", name).status_code == status
    assert places[0].things() == []
    for _ in range(2):
        answer = shop.post("/things/one")
        assert answer.status_code == 201
    assert answer.headers["Idempotent-Replayed"] == "true"
    assert places[0].things() == ["one", "one, too"]
    assert shop.committed == [2, 2]  # both told when all was committed
    shop.post("/things/rolled", "rolled")
    shop.post("/things/own", None)
    assert places[0].things()[2:] == ["rolled", "rolled, too", "own", "own, too"]
    assert shop.engine.pool.checkedout() == 0


def test_what_a_view_leaves_uncommitted_is_dropped_as_without_semel(
    places: tuple[Place, Place],
) -> None:
    shop = Shop(*places)
    for key in (None, "k"):
        assert shop.post("/things/uncommitted", key).status_code == 200
    assert places[0].things() == []
    assert shop.engine.pool.checkedout() == 0


def test_a_commit_after_each_request_is_a_part_of_the_operation(
    places: tuple[Place, Place],
) -> None:
    shop = Shop(*places, late_commit=True)
    for _ in range(2):
        assert shop.post("/things/one").status_code == 201
    assert shop.post("/things/failed", "failed").status_code == 500
    assert places[0].things() == ["one", "one, too"]


def test_what_was_loaded_before_the_operation_is_changed_within_it(
    places: tuple[Place, Place],
) -> None:
    shop = Shop(*places)
    with places[0].looks.begin() as connection:
        connection.execute(text("insert into thing (name) values ('user')"))
    for _ in range(2):
        assert shop.post("/rename/taken", "taken").status_code == 409
    assert places[0].things() == ["user"]
    assert shop.post("/rename/new").status_code == 200
    assert places[0].things() == ["new"]
    assert shop.engine.pool.checkedout() == 0


def test_another_database_is_read_and_not_written(places: tuple[Place, Place]) -> None:
    shop = Shop(*places)
    with places[1].looks.begin() as connection:
        connection.execute(text("insert into thing (name) values ('theirs')"))
    told = shop.post("/other/mine").json
    assert told["read"] == "theirs"
    assert "writes to" in told["refused"]
    assert places[1].things() == ["theirs"]
    assert shop.post("/other/mine", None).json == {}
    assert places[1].things() == ["theirs", "mine"]


def test_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match="give db = SQLAlchemy"):
        join_flask_sqlalchemy(object(), Idempotency("memory://"))  # type: ignore[arg-type]
