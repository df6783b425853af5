"""The guide's JavaScript and shell run as they stand; its Python runs with all the docs'."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from semel import ASGIMiddleware, Idempotency
from semel.testing.programs import needs
from semel.uploads import DiskStorage, Uploads
from tests.http.harness import asgi_server
from tests.uploads.harness import Service

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "uploads.md"


def block(language: str) -> str:
    """Return the guide's one block of a language."""
    (code,) = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(), re.M | re.S)
    return str(code)


@pytest.fixture
def tus(tmp_path: Path) -> Iterator[Service]:
    """Uploads where the guide mounts them, behind the middleware, which takes every key it sees."""
    uploads = Uploads(DiskStorage(tmp_path / "objects"), tmp_path / "uploads", sweep_every=None)
    idempotency = Idempotency("memory://")

    async def app(scope: dict[str, object], receive: object, send: object) -> None:
        scope = {**scope, "root_path": "/uploads"}
        await uploads.asgi(scope, receive, send)  # type: ignore[arg-type]

    with asgi_server(ASGIMiddleware(app, idempotency)) as port:
        yield Service(port, uploads)


def photo(tmp_path: Path) -> bytes:
    data = os.urandom(700_001)
    (tmp_path / "photo.jpg").write_bytes(data)
    return data


def test_the_shell_block_uploads_twice_and_stores_once(tus: Service, tmp_path: Path) -> None:
    needs("curl")
    needs("openssl")
    data = photo(tmp_path)
    script = f"set -euo pipefail\nserver=http://127.0.0.1:{tus.port}\n{block('sh')}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "201 Created" in done.stdout
    assert "204 No Content" in done.stdout
    urls = re.findall(r"(?i)^location: (\S+)", done.stdout, re.M)
    assert tus.content(urls[0]) == data
    (stored,) = (tmp_path / "objects").glob("??/*")
    assert stored.read_bytes() == data


def test_the_javascript_block_uploads(tus: Service, scripts: Path, tmp_path: Path) -> None:
    data = photo(tmp_path)
    code = block("js").replace('"/uploads/"', f'"http://127.0.0.1:{tus.port}/uploads/"')
    program = f"""
const tus = require("tus-js-client");
const file = Object.assign(require("fs").readFileSync({str(tmp_path / "photo.jpg")!r}),
  {{ name: "photo.jpg", type: "image/jpeg" }});
const finished = (url) => console.log(url);
const failed = (error) => {{ console.error(String(error)); process.exit(1); }};
{code}"""
    (scripts / "guide.cjs").write_text(program)
    done = subprocess.run(["node", "guide.cjs"], cwd=scripts, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    url = done.stdout.strip()
    assert tus.content(url) == data
    assert tus.found(url).describe() == {"filename": "photo.jpg", "filetype": "image/jpeg"}
