"""The fields of HTML forms, as far as a key may be among them."""

from __future__ import annotations

import email.parser
import email.policy
from urllib.parse import parse_qsl

MOST_FIELDS = 1000


def fields(content_type: str, body: bytes) -> dict[str, str]:
    """Return a form's text fields, the first of each name; none where the body is no form.

    A multipart body may be cut short: the fields before the cut are found.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        try:
            pairs = parse_qsl(
                body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MOST_FIELDS
            )
        except ValueError:  # too many
            return {}
    elif kind == "multipart/form-data":
        pairs = _multipart(content_type, body)
    else:
        return {}
    return dict(reversed(pairs))


def _multipart(content_type: str, body: bytes) -> list[tuple[str, str]]:
    head = b"content-type: " + content_type.encode("latin-1", "replace") + b"\r\n\r\n"
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    pairs = []
    for part in message.iter_parts() if message.is_multipart() else ():
        disposition = part.get("content-disposition")
        if disposition is None or part.is_multipart():
            continue
        parameters = disposition.params
        payload = part.get_payload(decode=True)
        if "name" in parameters and "filename" not in parameters and isinstance(payload, bytes):
            pairs.append((parameters["name"], payload.decode("utf-8", "replace")))
    return pairs
