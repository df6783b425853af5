"""The script that makes a page's forms and fetch calls safe to send again.

`semel.js` beside this file is its source and says by which rule; `semel.min.js` is what pages are
served: made from it by `make js`, and kept here so that neither users nor tests need Node.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from dataclasses import dataclass
from importlib import resources

MEDIA_TYPE = "text/javascript; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Script:
    """A script, ready to be served."""

    body: bytes
    """Its bytes; under 4,096 of them."""
    version: str
    """12 hexadecimal digits of its SHA-256. In the URL, they let browsers keep it for ever."""
    integrity: str
    """The value of `<script integrity="…">`: W3C Subresource Integrity, SHA-384."""
    media_type: str = MEDIA_TYPE
    """The value of `Content-Type`."""


@functools.cache
def semel_js() -> Script:
    """Return semel.js as it is served.

    `resources.files("semel.web.browser") / "semel.min.js"` is the file, for those who copy it.
    """
    body = (resources.files("semel.web.browser") / "semel.min.js").read_bytes()
    digest = base64.b64encode(hashlib.sha384(body).digest()).decode()
    return Script(body, hashlib.sha256(body).hexdigest()[:12], f"sha384-{digest}")
