"""The uploads of one service: what each request does, and whose upload it may touch."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from semel.core import problems as common
from semel.core.record import Response
from semel.failpoints import failpoint
from semel.idempotency import Scope
from semel.uploads import problems, protocol
from semel.uploads.digests import Check
from semel.uploads.intake import EXPECTED_ERRORS, UploadIntake, response_to
from semel.uploads.problems import UploadRefused, invalid
from semel.uploads.protocol import UploadRequest
from semel.uploads.spool import Part, Spool, UploadLimits
from semel.uploads.state import Upload, derived_id, is_upload_id, owner_hash
from semel.uploads.storage import Storage, StorageError

log = logging.getLogger("semel")


class UploadService:
    """Executes upload requests, however they arrived: what ASGI and WSGI have in common.

    `semel.uploads.Uploads` is the public class, and says what the parameters mean.
    """

    def __init__(
        self,
        storage: Storage,
        folder: str | Path,
        *,
        limits: UploadLimits | None = None,
        scope: Scope | None = None,
        expires: timedelta = timedelta(hours=24),
        idle: timedelta = timedelta(seconds=30),
        sweep_every: timedelta | None = timedelta(minutes=10),
        problem_base: str = common.BASE,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.storage = storage
        self.limits = limits or UploadLimits()
        self.scope = scope
        self.idle = idle.total_seconds()
        self.problem_base = problem_base
        self._spool = Spool(Path(folder), self.limits, now)
        self._expires = expires.total_seconds()
        self._sweep_every = None if sweep_every is None else sweep_every.total_seconds()
        self._swept_at = time.monotonic()
        if self._expires <= 0:
            raise ValueError("expires has to be more than nothing")

    def find(self, scope: str, upload: str) -> Upload | None:
        """Return an upload of this caller, by its id or URL; None where there is none.

        `scope` is what your `scope` function said of the caller who sent it.

        For the request that uses the file: check `complete`, then keep `digest` with your own data
        and read it with `storage.open`. Blocking, for the time it takes to read a small file.
        Raises `StorageError`.
        """
        name = upload.rstrip("/").rpartition("/")[2]
        return self._spool.read(owner_hash(scope), name) if is_upload_id(name) else None

    def sweep(self, older: timedelta = timedelta(hours=24)) -> int:
        """Clear expired uploads away, and what crashes left; return how many.

        An upload that somebody is sending to is left alone. `older`: for how long the storage
        leaves drafts alone; longer than a file takes to store. Raises `StorageError`, `OSError`.
        """
        return self._spool.sweep() + self.storage.sweep(older.total_seconds())

    # --- for the adapters -------------------------------------------------------------------------

    def begin(self, asked: UploadRequest, scope: str, mount: str) -> Response | UploadIntake:
        """Return the response to a request, or the intake of its body. Blocking."""
        self._sweep_if_due()
        try:
            return self._begin(asked, scope, mount)
        except EXPECTED_ERRORS as error:
            return response_to(error, self.problem_base)

    def _begin(self, asked: UploadRequest, scope: str, mount: str) -> Response | UploadIntake:
        wish = protocol.understand(asked, self.limits.max_size)
        owner = owner_hash(scope)
        match wish:
            case protocol.Discover():
                return protocol.discovered(self.limits.max_size)
            case protocol.StoreFile():
                return self._plain(wish, owner, scope, mount)
            case protocol.Create():
                return self._create(wish, owner, scope, mount)
            case protocol.Inspect():
                return protocol.inspected(self._existing(owner, wish.id))
            case protocol.Append():
                return self._append(wish, owner)
            case protocol.Terminate():
                return self._terminate(wish, owner)

    def _plain(self, wish: protocol.StoreFile, owner: str, scope: str, mount: str) -> UploadIntake:
        upload = self._new(secrets.token_hex(16), wish.length, promised=wish.checks)
        part = self._spool.reserve(owner, upload.id, wish.length)
        assert not isinstance(part, Upload), "a name was drawn twice"
        return self._intake(
            *(owner, upload, part),
            answer=lambda done: protocol.stored(done, mount),
            plain=lambda digest: derived_id(scope, "content", digest),
        )

    def _create(
        self, wish: protocol.Create, owner: str, scope: str, mount: str
    ) -> Response | UploadIntake:
        name = secrets.token_hex(16) if wish.key is None else derived_id(scope, "key", wish.key)
        upload = self._new(name, wish.length, wish.metadata, wish.promised)

        def answer(now: Upload) -> Response:
            return protocol.created(now, mount, with_body=wish.has_body)

        part = self._spool.read(owner, name) or self._spool.reserve(owner, name, wish.length)
        if isinstance(part, Upload):  # made before, under the same key
            if not _same(part, upload):
                raise UploadRefused(common.KEY_REUSED)
            return answer(part)
        try:
            self._spool.begin(owner, upload)
            failpoint("upload_created")
            if wish.has_body or not wish.length:
                _fits(wish.body_length, upload)
                return self._intake(owner, upload, part, wish.checks, answer=answer)
        except BaseException:
            part.close()
            raise
        part.close()
        return answer(upload)

    def _append(self, wish: protocol.Append, owner: str) -> Response | UploadIntake:
        part = self._spool.lock(owner, wish.id)
        try:
            upload = self._existing(owner, wish.id)
            if part is None and not upload.complete:
                raise UploadRefused(problems.UPLOAD_NOT_FOUND)
            if wish.offset != upload.offset:
                raise UploadRefused(problems.OFFSET_CONFLICT)
            _fits(wish.body_length, upload)
            if part is None or upload.complete:  # with nothing to add
                if part is not None:
                    part.remove()  # a crash came before this
                return protocol.appended(upload)
            return self._intake(owner, upload, part, wish.checks, answer=protocol.appended)
        except BaseException:
            if part is not None:
                part.close()
            raise

    def _terminate(self, wish: protocol.Terminate, owner: str) -> Response:
        part = self._spool.lock(owner, wish.id)
        try:
            self._existing(owner, wish.id)
            self._spool.forget(owner, wish.id)
            if part is not None:
                part.remove()
        finally:
            if part is not None:
                part.close()
        return protocol.terminated()

    def _existing(self, owner: str, name: str) -> Upload:
        upload = self._spool.read(owner, name)
        if upload is None:
            raise UploadRefused(problems.UPLOAD_NOT_FOUND)
        return upload

    def _new(
        self, name: str, length: int, metadata: str = "", promised: tuple[Check, ...] = ()
    ) -> Upload:
        expires_at = self._spool.now() + self._expires
        return Upload(name, length, 0, expires_at, metadata, promised)

    def _intake(
        self,
        owner: str,
        upload: Upload,
        part: Part,
        checks: tuple[Check, ...] = (),
        *,
        answer: Callable[[Upload], Response],
        plain: Callable[[str], str] | None = None,
    ) -> UploadIntake:
        return UploadIntake(
            *(self._spool, self.storage, owner, upload, part, checks),
            lifetime=self._expires,
            problem_base=self.problem_base,
            answer=answer,
            plain=plain,
        )

    def _sweep_if_due(self) -> None:
        now = time.monotonic()
        if self._sweep_every is not None and now - self._swept_at >= self._sweep_every:
            self._swept_at = now
            threading.Thread(target=self._sweep_aside, name="semel-sweep", daemon=True).start()

    def _sweep_aside(self) -> None:
        try:
            self.sweep()
        except (OSError, StorageError) as error:
            log.warning("could not clear uploads away: %s", error)


def _same(made: Upload, asked: Upload) -> bool:
    """Say whether a repeated creation is the same request."""
    return (made.length, made.metadata, made.promised) == (
        asked.length,
        asked.metadata,
        asked.promised,
    )


def _fits(body_length: int | None, upload: Upload) -> None:
    if body_length is not None and upload.offset + body_length > upload.length:
        raise invalid(f"the body goes beyond the upload's length, {upload.length} bytes")
