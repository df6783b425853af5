"""WSGI (PEP 3333): the middleware for Flask, Pyramid, Bottle and bare applications."""

from semel.web.wsgi.middleware import WSGIMiddleware

__all__ = ["WSGIMiddleware"]
