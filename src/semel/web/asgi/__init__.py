"""ASGI: the middleware for Starlette, FastAPI, Litestar, Quart and bare applications."""

from semel.web.asgi.middleware import ASGIMiddleware

__all__ = ["ASGIMiddleware"]
