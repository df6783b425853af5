"""Django: `INSTALLED_APPS += ["semel.web.django"]`, the middleware, and what views use."""
