"""The refusals that only uploads have; see `semel.core.problems` for what they are made of."""

from __future__ import annotations

from semel.core.problems import Problem

UPLOAD_INVALID = Problem("upload-invalid", 400, "The upload's headers or body are not valid", "")
UPLOAD_TYPE = Problem(
    "upload-type",
    415,
    "The body is not the file itself",
    "Nothing was done. Send the file's bytes as the body: with application/offset+octet-stream to a"
    " resumable upload, with any type but a form's to a plain one.",
)
UPLOAD_METHOD = Problem(
    "upload-method",
    405,
    "This method is not for uploads",
    "Nothing was done. POST makes an upload; HEAD, PATCH and DELETE are for the URL it answered.",
)
UPLOAD_VERSION = Problem(
    "upload-version",
    412,
    "This version of the upload protocol is not spoken here",
    "Nothing was done. Send Tus-Resumable: 1.0.0.",
)
UPLOAD_LENGTH_MISSING = Problem(
    "upload-length-missing",
    411,
    "The body's length is missing",
    "Nothing was done. Send Content-Length: room is set aside for the whole of it. A file whose"
    " length is not known yet goes up as a resumable upload, a piece at a time.",
)
UPLOAD_NOT_FOUND = Problem(
    "upload-not-found",
    404,
    "There is no such upload",
    "It has expired, was deleted, or is not yours. Begin a new one.",
)
OFFSET_CONFLICT = Problem(
    "offset-conflict",
    409,
    "The upload stands at another offset",
    "Nothing was done. Ask with HEAD for the Upload-Offset, and go on from there.",
)
UPLOAD_LOCKED = Problem(
    "upload-locked",
    423,
    "Another request is sending to this upload",
    "Nothing was done. Send it again after the time given, from the offset that HEAD answers.",
    retry_after=1,
)
DIGEST_MISMATCH = Problem("digest-mismatch", 400, "The bytes are not those of the digest", "")
CHECKSUM_MISMATCH = Problem(
    "checksum-mismatch",
    460,
    "The bytes are not those of the checksum",
    "The piece was discarded, the upload stands where it stood. Send the piece again.",
)
QUOTA_EXCEEDED = Problem("quota-exceeded", 429, "Too much is being uploaded by this caller", "")
STORAGE_FULL = Problem(
    "storage-full",
    507,
    "There is no room for this upload now",
    "What was acknowledged is kept. Try again after the time given.",
    retry_after=60,
)
STORAGE_UNAVAILABLE = Problem(
    "storage-unavailable",
    503,
    "The file cannot be stored now",
    "What was acknowledged is kept. Try again after the time given.",
    retry_after=5,
)

CATALOGUE: tuple[Problem, ...] = (
    UPLOAD_INVALID,
    UPLOAD_TYPE,
    UPLOAD_METHOD,
    UPLOAD_VERSION,
    UPLOAD_LENGTH_MISSING,
    UPLOAD_NOT_FOUND,
    OFFSET_CONFLICT,
    UPLOAD_LOCKED,
    DIGEST_MISMATCH,
    CHECKSUM_MISMATCH,
    QUOTA_EXCEEDED,
    STORAGE_FULL,
    STORAGE_UNAVAILABLE,
)


class Refused(Exception):
    """Carries a problem to where it is answered."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.title)
        self.problem = problem


def invalid(reason: str) -> Refused:
    """Return the refusal of a malformed request, with the field and the fix."""
    return Refused(UPLOAD_INVALID._replace(detail=f"Nothing was done: {reason}."))


def mismatch(field: str) -> Refused:
    """Return the refusal of bytes that are not what this field promised."""
    if field == "Upload-Checksum":
        return Refused(CHECKSUM_MISMATCH)
    detail = (
        f"The bytes that arrived are not those of {field}. They were discarded; send them again."
    )
    return Refused(DIGEST_MISMATCH._replace(detail=detail))


def over_quota(limit: int, unit: str) -> Refused:
    """Return the refusal of an upload beyond what one caller may have under way."""
    detail = (
        f"Nothing was done. A caller may have {limit} {unit} under way. Finish or delete an upload,"
        " or wait until an abandoned one expires."
    )
    return Refused(QUOTA_EXCEEDED._replace(detail=detail))
