"""Entity tags: made, read and compared (RFC 9110 section 8.8.3).

A tag is a `str` as it stands in a header, quotes and all: `"x"`, or `W/"x"` for a weak one.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Final
from urllib.parse import quote

ANY: Final = ("*",)
"""What `parse_tags` returns for `*`. No tag looks like it: tags are quoted."""

_TAG: Final = re.compile(r'(?:W/)?"[!#-~\x80-\xff]*"')
_BETWEEN: Final = re.compile(r"[ \t,]*")


def etag(content: bytes, *, weak: bool = False) -> str:
    """Return the tag of a representation: the SHA-256 of its bytes, 43 characters of base64.

    Strong: the same tag means the same bytes. `weak=True` is for content that stands for others
    which mean the same, such as a JSON value in one form of many.
    """
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f'{"W/" if weak else ""}"{digest}"'


def version_etag(*parts: str | int, weak: bool = False) -> str:
    """Return the tag of a row: its version, or several columns that change with it.

    A strong tag may never come back with other content. A version that begins at 1 again when a
    row is deleted and created anew does: give a column drawn at creation with it, as in
    `version_etag(row.born, row.version)`, or take the versions from a sequence.

    Raises `ValueError` without any part.
    """
    if not parts:
        raise ValueError("version_etag: give the row's version")
    name = "/".join(quote(str(part), safe=":+") for part in parts)
    return f'{"W/" if weak else ""}"{name}"'


def is_tag(text: str) -> bool:
    """Say whether this is one entity tag, as it stands in a header."""
    return _TAG.fullmatch(text) is not None


def parse_tags(field: str) -> tuple[str, ...]:
    """Read an `If-Match` or `If-None-Match` field: its tags, or `ANY` for `*`.

    In time linear in its length. Empty elements are skipped (RFC 9110 section 5.6.1.2). Raises
    `ValueError` where it is neither `*` nor a list of quoted tags.
    """
    if field.strip(" \t") == "*":
        return ANY
    tags: list[str] = []
    position = 0
    while True:
        between = _BETWEEN.match(field, position)
        assert between is not None
        position = between.end()
        if position == len(field):
            return tuple(tags)
        tag = _TAG.match(field, position)
        if tag is None or (tags and "," not in between.group()):
            raise ValueError("neither * nor a list of entity tags in double quotes")
        tags.append(tag.group())
        position = tag.end()


def strong_match(one: str, other: str) -> bool:
    """Compare two tags strongly: equal, and neither is weak (RFC 9110 section 8.8.3.2)."""
    return one == other and not one.startswith("W/")


def weak_match(one: str, other: str) -> bool:
    """Compare two tags weakly: equal but for `W/` (RFC 9110 section 8.8.3.2)."""
    return one.removeprefix("W/") == other.removeprefix("W/")
