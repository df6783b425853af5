from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from semel.testing.programs import needs
from semel.uploads import DiskStorage, Uploads
from tests.uploads.harness import Process, Service, service

SCRIPTS = Path(__file__).parent / "js"
Start = Callable[..., Service]


def caller(request: Any) -> str:
    return request.header("x-user") or "anonymous"


@pytest.fixture(params=["asgi", "wsgi"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(kind: str, tmp_path: Path) -> Iterator[Start]:
    """Start uploads behind a real server, with these settings."""
    with contextlib.ExitStack() as stack:

        def start(**settings: Any) -> Service:
            storage = settings.pop("storage", DiskStorage(tmp_path / "objects"))
            settings = {"scope": caller, "sweep_every": None, **settings}
            uploads = Uploads(storage, tmp_path / "uploads", **settings)
            return stack.enter_context(service(kind, uploads))

        yield start


@pytest.fixture
def tus(start: Start) -> Service:
    return start()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Make server processes, which end with the test."""
    with contextlib.ExitStack() as stack:

        def make(**settings: str) -> Process:
            made = Process(tmp_path, **settings)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tus-js-client, as npm has it."""
    needs("node")
    needs("npm")
    folder = tmp_path_factory.mktemp("node")
    shutil.copytree(SCRIPTS, folder, dirs_exist_ok=True)
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--silent"]
    subprocess.run(command, cwd=folder, check=True, timeout=120)
    return folder
