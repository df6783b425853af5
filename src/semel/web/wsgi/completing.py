"""The completer under WSGI: runs abandoned operations through the application, on a thread."""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from semel.core.commands import Abandoned, Park, Remembered, StoreError
from semel.idempotency import Idempotency
from semel.runtime.drivers import ThreadDriver
from semel.web.http import completer
from semel.web.http.body import Input
from semel.web.wsgi.exchange import WSGIExchange
from semel.web.wsgi.messages import Environ, Headers, StartResponse

log = logging.getLogger("semel")


class ThreadCompleting:
    """Looks for abandoned operations of one application, now and then or when asked."""

    def __init__(
        self, exchange: Callable[[StartResponse], WSGIExchange], idempotency: Idempotency
    ) -> None:
        self._exchange = exchange
        self._idempotency = idempotency
        self._process = 0  # whose thread looks for them

    def go_on(self) -> None:
        """Look for abandoned operations from now on, from a thread of this process."""
        every = self._idempotency.complete_every
        if every is None or self._process == os.getpid():
            return
        self._process = os.getpid()
        threading.Thread(
            target=self._each,
            args=(every.total_seconds(),),
            name="semel-completer",
            daemon=True,
        ).start()

    def _each(self, every: float) -> None:
        while True:
            time.sleep(every * random.uniform(0.75, 1.25))  # jitter; not security-sensitive
            if not self._idempotency.started:
                continue
            try:
                self.complete_abandoned()
            except StoreError as error:
                log.warning("could not look for abandoned operations: %s", error)
            except Exception:
                log.exception("could not complete abandoned operations")

    def complete_abandoned(self, idle: float = 1.0) -> int:
        """Finish operations that a crash has abandoned; return how many were run."""
        store = self._idempotency.store
        ran = 0
        abandoned = store.execute(Abandoned(completer.MOST, idle))
        for each in cast("tuple[Remembered, ...]", abandoned):
            todo = completer.work(self._idempotency, each, store.execute(completer.wanted(each)))
            if isinstance(todo, Park):
                store.execute(todo)
            elif todo is not None:
                ran += self._complete(todo)
        return ran

    def _complete(self, todo: completer.Work) -> bool:
        idempotency = self._idempotency
        driver = idempotency.operations.resume(ThreadDriver, todo.request, todo.policy, todo.found)
        outcome = driver.begin()
        if outcome is not None:
            todo.body.close()
            return False
        asked = todo.remembered
        environ: Environ = {
            "REQUEST_METHOD": asked.method,
            "SCRIPT_NAME": asked.root_path,
            "PATH_INFO": asked.path[len(asked.root_path) :],
            "QUERY_STRING": asked.query.decode("latin-1"),
            "CONTENT_LENGTH": str(todo.body.size),
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": Input(todo.body),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "semel.completing": asked.scope,
        }
        for name, value in asked.headers:
            field = name.decode("latin-1").upper().replace("-", "_")
            field = field if field == "CONTENT_TYPE" else f"HTTP_{field}"
            environ[field] = value.decode("latin-1")
        exchange = self._exchange(_unheard)
        exchange.begin(driver, todo.body)
        try:
            answer = exchange.run(environ)
            for _ in answer:
                continue
            if hasattr(answer, "close"):
                answer.close()
        except Exception:
            log.exception("operation %s failed", todo.key[:6].hex())
        return True


def _unheard(status: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], object]:
    """The client has gone long ago."""
    return len
