"""The journal encrypted at rest: AES-256-GCM, each record bound to its file, kind and number."""

from __future__ import annotations

import os

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "Journal(encryption_key=...) needs cryptography: pip install 'semel[encryption]'"
    ) from error

_NONCE = 12


class Cipher:
    """Seals payloads under a key of 32 bytes. Raises `ValueError` for another length."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError(
                f"encryption_key: give 32 bytes, such as secrets.token_bytes(32), not {len(key)}"
            )
        self._aead = AESGCM(key)

    def seal(self, payload: bytes, about: bytes) -> bytes:
        """Return the payload encrypted; only who names the same `about` can open it."""
        nonce = os.urandom(_NONCE)
        return nonce + self._aead.encrypt(nonce, payload, about)

    def open(self, sealed: bytes, about: bytes) -> bytes:
        """Return what was sealed. Raises `ValueError`: another key, or altered."""
        try:
            return self._aead.decrypt(sealed[:_NONCE], sealed[_NONCE:], about)
        except InvalidTag as error:
            raise ValueError("the key is another one, or the record was altered") from error
