"""Validators, which tell one state of a resource from another, and headers as they go out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from semel.web.conditional.dates import format_date
from semel.web.conditional.etags import is_tag
from semel.web.http.headers import is_valid

Fields = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Validators:
    """The validators of a resource that exists (RFC 9110 section 8.8); it may have none.

    Raises `ValueError` for what cannot be sent.
    """

    etag: str | None = None
    """As it stands in a header, quotes and all; see `etag` and `version_etag`."""
    last_modified: datetime | None = None
    """With its time zone. Counts to the second, which is too coarse to guard writes: two can fall
    into one second. Prefer the tag."""

    def __post_init__(self) -> None:
        """Check both, and cut the date to what a header says."""
        if self.etag is not None and not is_tag(self.etag):
            raise ValueError(
                f"etag: give it as it stands in a header, '\"…\"' or 'W/\"…\"', not {self.etag!r}"
            )
        if self.last_modified is not None:
            format_date(self.last_modified)
            exact = self.last_modified.astimezone(UTC).replace(microsecond=0)
            object.__setattr__(self, "last_modified", exact)

    def fields(self) -> Fields:
        """Return the headers that carry them."""
        fields = []
        if self.etag is not None:
            fields.append((b"etag", self.etag.encode("latin-1")))
        if self.last_modified is not None:
            fields.append((b"last-modified", format_date(self.last_modified).encode()))
        return tuple(fields)


def header_fields(headers: Mapping[str, str]) -> Fields:
    """Return headers as they go out. Raises `ValueError` for one that may not be sent."""
    fields = []
    for name, value in headers.items():
        try:
            field = (name.lower().encode("latin-1"), value.encode("latin-1"))
        except UnicodeEncodeError:
            field = (b"", b"")
        if not is_valid(*field):
            raise ValueError(f"{name}: {value!r} cannot be sent in a header; encode it first")
        fields.append(field)
    return tuple(fields)
