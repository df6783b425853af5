"""The state of one upload: frozen data and its one serialised form, without I/O."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass

from semel.uploads.digests import Check

_ID = re.compile(r"[0-9a-f]{32}")


def is_upload_id(name: str) -> bool:
    """Say whether a name may be that of an upload; nothing else ever becomes part of a path."""
    return _ID.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Upload:
    """One upload. Its file name and type are what the client said, to be shown and not trusted."""

    id: str
    """32 hexadecimal digits; the end of its URL."""
    length: int
    """Bytes that it will have."""
    offset: int
    """Bytes that are safe on disk and acknowledged."""
    expires_at: float
    """When it may be cleared away, in seconds since 1970; moves on with every piece."""
    metadata: str = ""
    """`Upload-Metadata` as it was sent."""
    promised: tuple[Check, ...] = ()
    """What the whole of it has to be, where the client said so."""
    digest: str | None = None
    """The SHA-256 under which it is stored, in hexadecimal; None until it is complete."""

    @property
    def complete(self) -> bool:
        """Whether it is stored."""
        return self.digest is not None

    def describe(self) -> dict[str, str]:
        """Return the metadata, decoded; a value that is no text comes with replacements."""
        pairs = (pair.strip().partition(" ") for pair in self.metadata.split(",") if pair)
        return {
            name: base64.b64decode(value).decode("utf-8", "replace") for name, _, value in pairs
        }

    def to_bytes(self) -> bytes:
        """Return the written form."""
        fields = dataclasses.asdict(self)
        fields["promised"] = [[c.field, c.algorithm, c.digest.hex()] for c in self.promised]
        return json.dumps({"version": 1, **fields}).encode()

    @classmethod
    def from_bytes(cls, written: bytes) -> Upload:
        """Read the written form. Raises `ValueError`."""
        try:
            fields = json.loads(written)
            if fields.pop("version") != 1:
                raise ValueError("written by a newer version")
            promised = tuple(Check(f, a, bytes.fromhex(d)) for f, a, d in fields.pop("promised"))
            return cls(**fields, promised=promised)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an upload's state: {error}") from error


def owner_hash(scope: str) -> str:
    """Return the part of a file's name that says whose upload it is; the scope is not stored."""
    return hashlib.blake2b(scope.encode(), digest_size=16, person=b"semel uploads 1").hexdigest()


def derived_id(scope: str, kind: str, name: str) -> str:
    """Return the id that follows from a caller's key or content, the same at every attempt."""
    asked = f"{len(scope)}:{scope}{kind}:{name}".encode()
    return hashlib.blake2b(asked, digest_size=16, person=b"semel upload id").hexdigest()
