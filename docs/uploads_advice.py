"""What the pages of the upload problems say: see `ADVICE` in `generate.py`."""

# slug: was anything done, what the client does, what the operator does
ADVICE = {
    "upload-invalid": (
        "No.",
        "The detail names the header and the fix.",
        "A proxy that drops or rewrites `Upload-*` and `Tus-*` headers can cause it.",
    ),
    "upload-type": (
        "No.",
        "Send the bytes of the file as the body, not a form around them.",
        "Forms with files are for a handler of your own.",
    ),
    "upload-method": (
        "No.",
        "`POST` to where uploads are mounted; `HEAD`, `PATCH` and `DELETE` to an upload's URL.",
        "Files are not served from here. An address without its last slash may have been"
        " redirected, which turns some clients' `POST` into `GET`.",
    ),
    "upload-version": (
        "No.",
        "Send `Tus-Resumable: 1.0.0` with every request to an upload.",
        "The client speaks another version of tus, or something between has dropped the header.",
    ),
    "upload-length-missing": (
        "No.",
        "Send `Content-Length`, or make the upload resumable.",
        "A proxy that turns bodies into chunked ones can cause it. Some WSGI servers do not tell"
        " where a chunked body ends.",
    ),
    "upload-not-found": (
        "No.",
        "Begin a new upload.",
        "It has expired (`expires`), was deleted or belongs to another `scope`; or the machines"
        " behind a balancer do not share their `folder`.",
    ),
    "offset-conflict": (
        "No. The upload stands where it stood.",
        "Ask with `HEAD` for the `Upload-Offset`, and send what follows it.",
        "Usual after a lost answer: the bytes had arrived.",
    ),
    "upload-locked": (
        "No. Another request is being worked on.",
        "Wait as long as `Retry-After` says, ask with `HEAD`, and go on from there.",
        "A connection that hangs holds its upload for `idle`.",
    ),
    "digest-mismatch": (
        "No. What arrived was discarded.",
        "Send the bytes again. If it persists, the digest was made of other bytes: of the file"
        " before it was compressed, for example.",
        "Something on the way alters bodies, if many clients see it.",
    ),
    "checksum-mismatch": (
        "No. The piece was discarded.",
        "Send the piece again, from the same offset.",
        "Something on the way alters bodies, if many clients see it.",
    ),
    "quota-exceeded": (
        "No.",
        "Finish or delete an upload that is under way, or wait for abandoned ones to expire.",
        "`Limits(caller_bytes=…, caller_uploads=…)`, and `expires` for how long an abandoned one"
        " counts.",
    ),
    "storage-full": (
        "No. What was acknowledged before is kept.",
        "Wait as long as `Retry-After` says, ask with `HEAD`, and go on from there.",
        "The disk is full, or `Limits(total_bytes=…)` is reached: `sweep()`, then make room.",
    ),
    "storage-unavailable": (
        "Perhaps: storing the same file again does no harm.",
        "Wait as long as `Retry-After` says and go on from the `Upload-Offset` that `HEAD` answers;"
        " send a plain upload again.",
        "The storage or the disk failed; the log says how.",
    ),
}
