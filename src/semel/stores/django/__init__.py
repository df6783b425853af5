"""Records in a database of Django's settings."""

from semel.stores.django.store import DjangoStore

__all__ = ["DjangoStore"]
