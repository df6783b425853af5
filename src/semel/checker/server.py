"""The server that `--command` starts, and that the cases kill and restart."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tempfile
import time
from typing import Final

from semel.checker.wire import Wire

START: Final = 30.0
"""Seconds in which it has to listen."""


class ServerFailed(RuntimeError):
    """The server does not start; the message holds what it said."""


class ServerUnderTest:
    """A command, in a process group of its own. Nothing else is ever killed."""

    def __init__(self, command: str, wire: Wire) -> None:
        self._command = shlex.split(command)
        self._wire = wire
        self._process: subprocess.Popen[bytes] | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `stop`

    def start(self) -> None:
        """Start it and wait until it listens. Raises `ServerFailed`."""
        if self._wire.listens():
            raise ServerFailed(
                f"something listens on port {self._wire.port} already, and is not ours to kill"
            )
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise ServerFailed(f"--command: {error}") from None
        end = time.monotonic() + START
        while not self._wire.listens():
            if self._process.poll() is not None or time.monotonic() > end:
                raise ServerFailed(f"the server did not start: {self._output()}")
            time.sleep(0.02)

    def kill(self) -> None:
        """`kill -9`, its workers too."""
        self._signal(signal.SIGKILL)
        end = time.monotonic() + 5
        while self._wire.listens() and time.monotonic() < end:
            time.sleep(0.01)

    def stop(self) -> None:
        """Ask it to end, then kill it."""
        self._signal(signal.SIGTERM, wait=5)
        self._signal(signal.SIGKILL)
        self._said.close()

    def _signal(self, number: signal.Signals, wait: float = 10) -> None:
        process = self._process
        if process is None:
            return
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            pass

    def _output(self) -> str:
        self._said.seek(0)
        return self._said.read()[-2000:].decode(errors="replace").strip() or "it said nothing"
