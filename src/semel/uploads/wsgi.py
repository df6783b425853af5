"""Uploads as a WSGI application, on the threads of the server."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from http import HTTPStatus

from semel.core.record import Response
from semel.uploads import problems, protocol
from semel.uploads.intake import UploadIntake
from semel.uploads.protocol import UploadRequest
from semel.uploads.uploads import UploadService
from semel.web.http.callers import caller_of, scope_name
from semel.web.wsgi.messages import Environ, StartResponse, WSGIView

log = logging.getLogger("semel")

AT_ONCE = 256 * 1024
"""Bytes read together; what one upload holds in memory."""
DRAINED = 16 * 1024 * 1024
"""Bytes of a refused body that are read, so that its client gets the response and not a reset."""


class Cut(Exception):
    """The body ended before its end."""


class UploadsWSGI:
    """The WSGI application of an `UploadService`."""

    def __init__(self, uploads: UploadService) -> None:
        self._uploads = uploads

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        asked = _asked(environ)
        if _is_endless(environ):
            answer = protocol.refused(problems.UPLOAD_LENGTH_MISSING, self._uploads.problem_base)
        else:
            mount = environ.get("SCRIPT_NAME", "").encode("latin-1").decode(errors="replace")
            outcome = self._uploads.begin(asked, self._owner(environ), mount.rstrip("/"))
            answer = self._take(outcome, environ) if isinstance(outcome, UploadIntake) else outcome
            if not isinstance(outcome, UploadIntake):
                _drain(environ)
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer[1]]
        body = (answer.body or b"") if environ["REQUEST_METHOD"] != "HEAD" else b""
        if answer.status != 204:
            headers.append(("content-length", str(len(body))))
        start_response(f"{answer.status} {_reason(answer.status)}", headers)
        return [body] if body else []

    def _take(self, intake: UploadIntake, environ: Environ) -> Response:
        try:
            for chunk in _chunks(environ):
                refusal = intake.write((chunk,))
                if refusal is not None:
                    return refusal
        except (OSError, Cut):  # nobody reads this response
            intake.cut()
            return Response(HTTPStatus.BAD_REQUEST, (), b"")
        except BaseException:  # the server's own: a timeout that it raises, say
            intake.cut()
            raise
        return intake.end()

    def _owner(self, environ: Environ) -> str:
        return scope_name(caller_of(WSGIView(environ), self._uploads.scope))


def _asked(environ: Environ) -> UploadRequest:
    headers = {
        name[5:].replace("_", "-").lower(): str(value)
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            headers[name.replace("_", "-").lower()] = environ[name]
    return UploadRequest(environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""), headers)


def _is_endless(environ: Environ) -> bool:
    """Return whether there is a body whose end this server does not signal."""
    return (
        not environ.get("CONTENT_LENGTH")
        and "HTTP_TRANSFER_ENCODING" in environ
        and not environ.get("wsgi.input_terminated")
    )


def _chunks(environ: Environ) -> Iterator[bytes]:
    stream = environ["wsgi.input"]
    declared = environ.get("CONTENT_LENGTH")
    left = int(declared) if declared else None
    if left is None and not environ.get("wsgi.input_terminated"):
        return
    while left is None or left > 0:
        chunk = stream.read(AT_ONCE if left is None else min(left, AT_ONCE))
        if not chunk:
            if left is not None:
                raise Cut
            return
        yield chunk
        if left is not None:
            left -= len(chunk)


def _drain(environ: Environ) -> None:
    read = 0
    try:
        for chunk in _chunks(environ):
            read += len(chunk)
            if read >= DRAINED:
                return
    except (OSError, ValueError, Cut):
        return


def _reason(status: int) -> str:
    return "Checksum Mismatch" if status == 460 else HTTPStatus(status).phrase
