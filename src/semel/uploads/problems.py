"""The problems that only uploads have, written as those of `semel.core.problems` are.

`semel.client` does not know them: it judges an upload's refusal by the status alone.
"""

from __future__ import annotations

from typing import Final

from semel.core.problems import Problem, problems_in

UPLOAD_INVALID = Problem(
    "upload-invalid",
    400,
    "The upload's headers or body are not valid",
    "",
    effect="none",
    retry=False,
)
"""Done: No.
Client: The detail names the header and the fix.
Operator: A proxy that drops or rewrites `Upload-*` and `Tus-*` headers can cause it.
"""
UPLOAD_TYPE = Problem(
    "upload-type",
    415,
    "The body is not the file itself",
    "Nothing was done. Send the file's bytes as the body: with application/offset+octet-stream to a"
    " resumable upload, with any type but a form's to a plain one.",
    effect="none",
    retry=False,
)
"""Done: No.
Client: Send the bytes of the file as the body, not a form around them.
Operator: Forms with files are for a handler of your own.
"""
UPLOAD_METHOD = Problem(
    "upload-method",
    405,
    "This method is not for uploads",
    "Nothing was done. POST makes an upload; HEAD, PATCH and DELETE are for the URL it returned.",
    effect="none",
    retry=False,
)
"""Done: No.
Client: `POST` to where uploads are mounted; `HEAD`, `PATCH` and `DELETE` to an upload's URL.
Operator: Files are not served from here. An address without its last slash may have been
redirected, which turns some clients' `POST` into `GET`.
"""
UPLOAD_VERSION = Problem(
    "upload-version",
    412,
    "This version of the upload protocol is not spoken here",
    "Nothing was done. Send Tus-Resumable: 1.0.0.",
    effect="none",
    retry=False,
)
"""Done: No.
Client: Send `Tus-Resumable: 1.0.0` with every request to an upload.
Operator: The client speaks another version of tus, or something between has dropped the header.
"""
UPLOAD_LENGTH_MISSING = Problem(
    "upload-length-missing",
    411,
    "The body's length is missing",
    "Nothing was done. Send Content-Length: room is set aside for the whole of it. A file whose"
    " length is not known yet goes up as a resumable upload, a piece at a time.",
    effect="none",
    retry=False,
)
"""Done: No.
Client: Send `Content-Length`, or make the upload resumable.
Operator: A proxy that turns bodies into chunked ones can cause it. Some WSGI servers do not tell
where a chunked body ends.
"""
UPLOAD_NOT_FOUND = Problem(
    "upload-not-found",
    404,
    "There is no such upload",
    "It has expired, was deleted, or is not yours. Begin a new one.",
    effect="none",
    retry=False,
)
"""Done: No.
Client: Begin a new upload.
Operator: It has expired (`expires`), was deleted or belongs to another `scope`; or the machines
behind a balancer do not share their `folder`.
"""
OFFSET_CONFLICT = Problem(
    "offset-conflict",
    409,
    "The upload stands at another offset",
    "Nothing was done. Ask with HEAD for the Upload-Offset, and go on from there.",
    effect="none",
    retry=False,
)
"""Done: No. The upload stands where it stood.
Client: Ask with `HEAD` for the `Upload-Offset`, and send what follows it.
Operator: Usual after a lost response: the bytes had arrived.
"""
UPLOAD_LOCKED = Problem(
    "upload-locked",
    423,
    "Another request is sending to this upload",
    "Nothing was done. Send it again after the time given, from the offset that HEAD returns.",
    effect="none",
    retry=True,
    retry_after=1,
)
"""Done: No. Another request is being processed.
Client: Wait as long as `Retry-After` says, ask with `HEAD`, and go on from there.
Operator: A connection that hangs holds its upload for `idle`.
"""
DIGEST_MISMATCH = Problem(
    "digest-mismatch",
    400,
    "The bytes are not those of the digest",
    "",
    effect="none",
    retry=True,
)
"""Done: No. What arrived was discarded.
Client: Send the bytes again. If it persists, the digest was made of other bytes: of the file before
it was compressed, for example.
Operator: Something on the way alters bodies, if many clients see it.
"""
CHECKSUM_MISMATCH = Problem(
    "checksum-mismatch",
    460,
    "The bytes are not those of the checksum",
    "The piece was discarded, the upload stands where it stood. Send the piece again.",
    effect="none",
    retry=True,
)
"""Done: No. The piece was discarded.
Client: Send the piece again, from the same offset.
Operator: Something on the way alters bodies, if many clients see it.
"""
QUOTA_EXCEEDED = Problem(
    "quota-exceeded",
    429,
    "Too much is being uploaded by this caller",
    "",
    effect="none",
    retry=True,
)
"""Done: No.
Client: Finish or delete an upload that is under way, or wait for abandoned ones to expire.
Operator: `UploadLimits(caller_bytes=…, caller_uploads=…)`, and `expires` for how long an abandoned
one counts.
"""
STORAGE_FULL = Problem(
    "storage-full",
    507,
    "There is no room for this upload now",
    "What was acknowledged is kept. Try again after the time given.",
    effect="unknown",
    retry=True,
    retry_after=60,
)
"""Done: No. What was acknowledged before is kept.
Client: Wait as long as `Retry-After` says, ask with `HEAD`, and go on from there.
Operator: The disk is full, or `UploadLimits(total_bytes=…)` is reached: `sweep()`, then make room.
"""
STORAGE_UNAVAILABLE = Problem(
    "storage-unavailable",
    503,
    "The file cannot be stored now",
    "What was acknowledged is kept. Try again after the time given.",
    effect="unknown",
    retry=True,
    retry_after=5,
)
"""Done: Perhaps: storing the same file again does no harm.
Client: Wait as long as `Retry-After` says and go on from the `Upload-Offset` that `HEAD` returns;
send a plain upload again.
Operator: The storage or the disk failed; the log says how.
"""

CATALOGUE: Final = problems_in(vars())
"""Every problem above, in this order."""


class UploadRefused(Exception):
    """Carries a problem to where it is answered."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.title)
        self.problem = problem


def invalid(reason: str) -> UploadRefused:
    """Return the refusal of a malformed request, with the field and the fix."""
    return UploadRefused(UPLOAD_INVALID._replace(detail=f"Nothing was done: {reason}."))


def mismatch(field: str) -> UploadRefused:
    """Return the refusal of bytes that are not what this field promised."""
    if field == "Upload-Checksum":
        return UploadRefused(CHECKSUM_MISMATCH)
    detail = (
        f"The bytes that arrived are not those of {field}. They were discarded; send them again."
    )
    return UploadRefused(DIGEST_MISMATCH._replace(detail=detail))


def over_quota(limit: int, unit: str) -> UploadRefused:
    """Return the refusal of an upload beyond what one caller may have under way."""
    detail = (
        f"Nothing was done. A caller may have {limit} {unit} under way. Finish or delete an upload,"
        " or wait until an abandoned one expires."
    )
    return UploadRefused(QUOTA_EXCEEDED._replace(detail=detail))
