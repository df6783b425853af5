"""The script that gives HTML forms idempotency keys, as an ASGI and WSGI application."""

from semel.web.browser.script import semel_js

__all__ = ["semel_js"]
