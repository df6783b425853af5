"""The intake of one request's body: written, checked, acknowledged, and stored in the end."""

from __future__ import annotations

import dataclasses
import errno
import logging
from collections.abc import Callable, Sequence

from semel.core.record import Response
from semel.failpoints import failpoint
from semel.uploads import problems, protocol
from semel.uploads.digests import Check, Hashes
from semel.uploads.problems import UploadRefused, invalid, mismatch
from semel.uploads.spool import Part, Spool
from semel.uploads.state import Upload
from semel.uploads.storage import Storage, StorageError

log = logging.getLogger("semel")

KEEP_EVERY = 8 * 1024 * 1024
"""Bytes after which a piece is made durable while the rest of it arrives: the most that a kill can
take from a client that sends a whole file in one request."""


EXPECTED_ERRORS = (UploadRefused, StorageError, OSError)
"""The errors that `response_to` knows a response to."""


def response_to(error: Exception, problem_base: str) -> Response:
    """Return the response to one of `EXPECTED_ERRORS`."""
    if isinstance(error, UploadRefused):
        return protocol.refused(error.problem, problem_base)
    log.warning("upload: %s", error)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    problem = problems.STORAGE_FULL if full else problems.STORAGE_UNAVAILABLE
    return protocol.refused(problem, problem_base)


class UploadIntake:
    """Takes the body of one request.

    After a `write` that returns a response, after `end` and after `cut` it is closed, and a further
    `cut` does nothing.

    Blocking, and used by one thread at a time.
    """

    def __init__(
        self,
        spool: Spool,
        storage: Storage,
        owner: str,
        upload: Upload,
        part: Part,
        checks: Sequence[Check],
        *,
        lifetime: float,
        problem_base: str,
        answer: Callable[[Upload], Response],
        plain: Callable[[str], str] | None = None,
    ) -> None:
        """`plain` gives a plain upload its name, by its digest; None: the upload is resumable."""
        self._spool = spool
        self._storage = storage
        self._owner = owner
        self._upload = upload
        self._part = part
        self._lifetime = lifetime
        self._problem_base = problem_base
        self._answer = answer
        self._plain = plain
        self._checks = checks
        self._piece = Hashes(checks)
        self._whole = Hashes(upload.promised, "sha256") if upload.offset == 0 else None
        self._position = upload.offset
        self._left = False

    def write(self, chunks: Sequence[bytes]) -> Response | None:
        """Take the next bytes. A response ends it: nothing more is wanted."""
        try:
            self._write(chunks)
        except EXPECTED_ERRORS as error:
            self._leave()
            return response_to(error, self._problem_base)
        except BaseException:
            self._leave()
            raise
        return None

    def _write(self, chunks: Sequence[bytes]) -> None:
        size = sum(map(len, chunks))
        if self._position + size > self._upload.length:
            raise invalid(f"the body goes beyond the upload's length, {self._upload.length} bytes")
        self._part.write(chunks, self._position)
        self._piece.update(chunks)
        if self._whole is not None:
            self._whole.update(chunks)
        self._position += size
        failpoint("upload_written")
        if (
            self._position - self._upload.offset >= KEEP_EVERY
            and self._position < self._upload.length  # its end counts once the whole is stored
            and not self._checks
            and self._plain is None
        ):
            self._keep()

    def end(self) -> Response:
        """The body is here in full: check it, keep it, store the upload if that completes it."""
        try:
            broken = self._piece.broken()
            if broken is not None:
                raise mismatch(broken)
            if self._position == self._upload.length:
                self._store()
            elif self._plain is not None:
                raise invalid("the body is shorter than Content-Length")
            else:
                self._keep()
            return self._answer(self._upload)
        except EXPECTED_ERRORS as error:
            return response_to(error, self._problem_base)
        finally:
            self._leave()

    def cut(self, rest: Sequence[bytes] = ()) -> None:
        """The client has gone: keep what arrived, unless its piece came with a digest.

        `rest` is what arrived and was not written yet.
        """
        if self._left:
            return
        try:
            if self._plain is not None or self._checks:
                return
            if rest:
                self._write(rest)
            if self._position == self._upload.length:
                self._store()
            else:
                self._keep()
        except (OSError, StorageError, UploadRefused) as error:
            log.warning("upload: %s", error)  # what was acknowledged before stands
        finally:
            self._leave()

    def _keep(self) -> None:
        """Make what arrived durable, then say so in the state; only then is it acknowledged."""
        if self._position > self._upload.offset:
            self._part.sync()
        failpoint("upload_synced")
        self._renew(offset=self._position)
        self._spool.write(self._owner, self._upload)
        failpoint("upload_acknowledged")

    def _store(self) -> None:
        if self._whole is None:
            self._whole = Hashes(self._upload.promised, "sha256")
            for chunk in self._part.read():
                self._whole.update((chunk,))
        broken = self._whole.broken()
        if broken is not None:
            self._spool.forget(self._owner, self._upload.id)
            self._part.remove()
            raise mismatch(broken)
        digest = self._whole.sha256()
        failpoint("upload_hashed")
        self._storage.put(digest, self._part.path)
        failpoint("upload_placed")
        name = self._upload.id if self._plain is None else self._plain(digest)
        self._renew(id=name, offset=self._position, digest=digest)
        self._spool.write_complete(self._owner, self._upload)
        failpoint("upload_done")
        self._part.remove()

    def _renew(self, **changes: str | int) -> None:
        expires_at = self._spool.now() + self._lifetime
        self._upload = dataclasses.replace(self._upload, expires_at=expires_at, **changes)  # type: ignore[arg-type]

    def _leave(self) -> None:
        """Let go of the bytes; those of a plain upload cannot be gone on with."""
        self._left = True
        if self._plain is None:
            self._part.close()
        else:
            self._part.remove()
