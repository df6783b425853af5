"""Real servers for tests, the demo and the bench, on free loopback ports, in folders thrown away.

As root they run under an unprivileged user. A server whose programs are not here raises
`ProgramMissing` when it is made.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from semel.testing.programs import (
    ProgramMissing,
    needs,
    postgresql_programs,
    rclone_program,
    redis_program,
)

__all__ = [
    "S3",
    "MariaDB",
    "Nats",
    "PgBouncer",
    "PostgreSQL",
    "Server",
    "Standby",
    "Valkey",
    "ValkeyCluster",
    "free_port",
    "running",
]


def free_port() -> int:
    """Return a loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _unprivileged(*names: str) -> dict[str, Any]:
    """What makes a child process drop root; nothing where there is none to drop."""
    if os.geteuid() != 0:
        return {}
    for name in (*names, "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return {}


class Server:
    """One process that listens; `start` may follow `stop` or `crash`, with the same data."""

    name = "server"

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"semel-{self.name[:2]}-"))  # short: socket path
        self._process: subprocess.Popen[bytes] | None = None
        self._as: dict[str, Any] = {}

    def command(self) -> Sequence[str | Path]:
        """Return what to run."""
        raise NotImplementedError

    def _ready(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.5):
            return True
        return False

    def start(self) -> None:
        """Start it and wait until it answers. Raises `RuntimeError` with its log."""
        log = self.folder / "log"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [str(part) for part in self.command()],
                cwd=self.folder,
                env={**kept, "LC_ALL": "C", "HOME": str(self.folder)},
                stdout=out,
                stderr=out,
                start_new_session=True,
                **self._as,
            )
        for _ in range(1200):
            if self._process.poll() is not None:
                break
            if self._ready():
                return
            time.sleep(0.025)
        raise RuntimeError(f"{self.name} did not start: {log.read_text(errors='replace')[-2000:]}")

    def crash(self, how: int = signal.SIGKILL) -> None:
        """Kill it, without a chance to tidy up."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(20)

    def pause(self) -> None:
        """Have it stand still."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """End a pause."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it and throw its data away."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.go_on()
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(20)
        shutil.rmtree(self.folder, ignore_errors=True)


class PostgreSQL(Server):
    """A PostgreSQL cluster. `fsync=False` is for tests that do not cut the power."""

    name = "postgresql"

    def __init__(self, *settings: str, fsync: bool = False) -> None:
        programs = postgresql_programs()
        super().__init__()
        self._settings = ("max_connections=300", f"fsync={'on' if fsync else 'off'}", *settings)
        self._as = _unprivileged("postgres")
        if self._as:
            programs = self._readable(programs.resolve())
            os.chown(self.folder, self._as["user"], self._as["group"])
            self.folder.chmod(0o755)
        self.programs = programs
        self.data = self.folder / "data"
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._fill()

    def _fill(self) -> None:
        """Make the data directory."""
        locale = ("--no-sync", "-E", "UTF8")
        self._run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", *locale)

    def _run(self, program: str, *arguments: str | Path) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        subprocess.run(
            [self.programs / program, *arguments],
            check=True,
            capture_output=True,
            cwd=self.folder,
            env={**env, "LC_ALL": "C", "HOME": str(self.folder)},
            **self._as,
        )

    def _readable(self, programs: Path) -> Path:
        """Where a private home hides them from the server's user, a copy that it can read."""
        if all(p.stat().st_mode & 0o005 == 0o005 for p in (programs, *programs.parents)):
            return programs
        source = programs.parent
        package = source.parent  # the libraries are found relative to the programs: keep the layout
        shutil.copytree(source, self.folder / package.name / source.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, self.folder / libraries.name)
        return self.folder / package.name / source.name / "bin"

    def command(self) -> Sequence[str | Path]:
        """Return what to run."""
        options = [part for setting in self._settings for part in ("-c", setting)]
        listen = ("-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.folder))
        return [self.programs / "postgres", "-D", self.data, *listen, *options]

    def _ready(self) -> bool:
        asked = (str(self.programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port))
        return super()._ready() and subprocess.run(asked).returncode == 0

    def immediate(self) -> None:
        """Stop it as `pg_ctl stop -m immediate` does: no checkpoint, recovery at the next start."""
        self.crash(signal.SIGQUIT)

    def database(self, name: str) -> str:
        """Make a database and return its URL."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f'create database "{name}"')  # type: ignore[call-overload,unused-ignore]
        return self.url.rsplit("/", 1)[0] + f"/{name}"


class Standby(PostgreSQL):
    """A copy that follows its primary, until it is promoted.

    `port`: where it finds the primary, if not at its own port (a `Proxy`). Without `pg_basebackup`
    beside PostgreSQL's programs: `ProgramMissing`.
    """

    name = "standby"

    def __init__(self, primary: PostgreSQL, *settings: str, port: int | None = None) -> None:
        if not (primary.programs / "pg_basebackup").exists():
            raise ProgramMissing(
                f"needs pg_basebackup beside {primary.programs}: apt-get install postgresql"
            )
        self._follows = port or primary.port
        super().__init__(*settings)

    def _fill(self) -> None:
        where = ("-h", "127.0.0.1", "-p", str(self._follows), "-U", "postgres")
        self._run("pg_basebackup", "-D", self.data, *where, "-R", "--checkpoint=fast")

    def promote(self) -> None:
        """Make it a primary."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("select pg_promote()")


class Valkey(Server):
    """A Valkey (or Redis) server with nothing in it."""

    name = "valkey"

    def __init__(self, *settings: str) -> None:
        self._program = redis_program()
        super().__init__()
        self._settings = settings
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> Sequence[str | Path]:
        """Return what to run."""
        listen = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder))
        keep = ("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction")
        return [self._program, *listen, *keep, *self._settings]

    def _ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 0.5) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(7).startswith(b"+PONG")
        except OSError:
            return False


class ValkeyCluster:
    """A cluster of three servers, each with a third of the slots."""

    SLOTS = 16384

    def __init__(self, size: int = 3) -> None:
        settings = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
        self.nodes = [Valkey(*settings, *self._bus()) for _ in range(size)]
        self.url = self.nodes[0].url.replace("redis://", "redis+cluster://").rpartition("/")[0]

    @staticmethod
    def _bus() -> tuple[str, str]:
        return "--cluster-port", str(free_port())

    def start(self) -> None:
        """Start them, share the slots out, and wait until each knows of all."""
        import redis

        for node in self.nodes:
            node.start()
        clients: list[Any] = [redis.Redis(port=node.port) for node in self.nodes]
        share = -(-self.SLOTS // len(clients))
        for number, client in enumerate(clients):
            last = min((number + 1) * share, self.SLOTS) - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", number * share, last)
            bus = client.config_get("cluster-port")["cluster-port"]
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", self.nodes[number].port, bus)
        for _ in range(1200):
            told = [client.execute_command("CLUSTER", "INFO") for client in clients]
            known = b"cluster_known_nodes:%d" % len(clients)
            if all(b"cluster_state:ok" in info and known in info for info in told):
                return
            time.sleep(0.025)
        raise RuntimeError(f"the cluster did not come together: {told}")

    def close(self) -> None:
        """End it and throw its data away."""
        for node in self.nodes:
            node.close()


class MariaDB(Server):
    """A MariaDB server."""

    name = "mariadb"

    def __init__(self) -> None:
        self._program = needs("mariadbd", "mysqld")
        super().__init__()
        self._as = _unprivileged("mysql")
        if self._as:
            os.chown(self.folder, self._as["user"], self._as["group"])
            self.folder.chmod(0o755)
        subprocess.run(
            [
                *("mariadb-install-db", "--no-defaults", f"--datadir={self.folder}/data"),
                *("--auth-root-authentication-method=normal", "--skip-test-db"),
            ],
            check=True,
            capture_output=True,
            cwd=self.folder,
            **self._as,
        )
        self.url = f"mysql://root@127.0.0.1:{self.port}/mysql"

    def command(self) -> Sequence[str | Path]:
        """Return what to run."""
        return [
            self._program,
            "--no-defaults",
            f"--datadir={self.folder}/data",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            f"--socket={self.folder}/s",
            f"--pid-file={self.folder}/pid",
            "--innodb-flush-log-at-trx-commit=2",
            "--innodb-buffer-pool-size=64M",
            "--max-connections=300",
        ]

    def database(self, name: str) -> str:
        """Make a database and return its URL."""
        import pymysql  # type: ignore[import-untyped]

        with pymysql.connect(host="127.0.0.1", port=self.port, user="root") as connection:
            connection.cursor().execute(f"create database `{name}`")
        return self.url.rsplit("/", 1)[0] + f"/{name}"


class PgBouncer(Server):
    """pgbouncer in transaction mode, in front of a PostgreSQL server."""

    name = "pgbouncer"

    def __init__(self, behind: PostgreSQL, pool: int = 5) -> None:
        self._program = needs("pgbouncer")
        super().__init__()
        self._as = _unprivileged("postgres")
        if self._as:
            os.chown(self.folder, self._as["user"], self._as["group"])
            self.folder.chmod(0o755)
        (self.folder / "users").write_text('"postgres" ""\n')
        (self.folder / "ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={behind.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\n"
            f"auth_type = trust\nauth_file = {self.folder}/users\npool_mode = transaction\n"
            f"default_pool_size = {pool}\nmax_client_conn = 300\nunix_socket_dir =\n"
        )
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def command(self) -> Sequence[str | Path]:
        """Return what to run."""
        return [self._program, self.folder / "ini"]


class Nats(Server):
    """A NATS server with JetStream."""

    name = "nats"

    def __init__(self) -> None:
        self._program = needs("nats-server")
        super().__init__()
        self.url = f"nats://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str | Path]:
        """Return what to run."""
        listen = ["-a", "127.0.0.1", "-p", str(self.port)]
        return [self._program, *listen, "-js", "-sd", self.folder / "jetstream"]


class S3(Server):
    """An S3-style storage with one empty bucket: `rclone serve s3` over a folder."""

    name = "s3"
    bucket = "files"
    access_key, secret_key = "semel", "a-secret-of-tests"

    def __init__(self) -> None:
        self._program = rclone_program()
        super().__init__()
        self.objects = self.folder / "s3" / self.bucket
        self.objects.mkdir(parents=True)
        self.url = f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str | Path]:
        """Return what to run."""
        keys = f"{self.access_key},{self.secret_key}"
        listen = ("--addr", f"127.0.0.1:{self.port}", "--auth-key", keys)
        return [self._program, "serve", "s3", self.folder / "s3", *listen, "--config", ""]


S = TypeVar("S", bound=Server | ValkeyCluster)


@contextlib.contextmanager
def running(make: Callable[[], S]) -> Iterator[S]:
    """Start a server and close it in the end."""
    server = make()
    try:
        server.start()
        yield server
    finally:
        server.close()
