"""The installed app."""

from __future__ import annotations

from django.apps import AppConfig


class SemelConfig(AppConfig):
    """Idempotency keys: records, their admin, `manage.py semel`, and checks of the settings."""

    name = "semel.web.django"
    label = "semel"
    verbose_name = "Idempotency"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the checks."""
        from semel.web.django import checks  # noqa: F401
