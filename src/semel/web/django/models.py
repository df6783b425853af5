"""The tables of `DjangoStore`, for migrations and the admin; the store writes them by SQL.

Named apart from those of Semel's other stores, which may live in the same database.
"""

from __future__ import annotations

from typing import Any

from django.db import models

from semel.core.record import State


class Record(models.Model):
    """A record. Times are seconds since the epoch by the database's clock."""

    token = models.BigAutoField(primary_key=True)
    key_hash = models.CharField("key", max_length=32, unique=True)  # hexadecimal
    state = models.PositiveSmallIntegerField(
        choices=[(state.value, state.name.lower().replace("_", " ")) for state in State]
    )
    attempt = models.PositiveIntegerField()
    owner = models.BinaryField()
    fingerprint = models.BinaryField()
    lease_until = models.FloatField()
    due_at = models.FloatField(null=True)
    purge_at = models.FloatField(null=True)
    answer = models.BinaryField(null=True)
    reason = models.TextField(null=True)
    request = models.BinaryField(null=True)

    class Meta:
        app_label = "semel"
        db_table = "semel_django_record"
        default_permissions = ("view",)
        permissions = (("settle_record", "Can park, release and settle operations"),)
        indexes = (
            models.Index(fields=["due_at"], name="semel_django_due"),
            models.Index(fields=["state", "lease_until"], name="semel_django_state"),
        )

    def __str__(self) -> str:
        return str(self.reference)

    @property
    def reference(self) -> Any:
        """The short public name that problem answers and logs show."""
        return self.key_hash[:12]


class Step(models.Model):
    """A recorded step. Its result is null while it was only begun."""

    digest = models.CharField(max_length=64, primary_key=True)
    key_hash = models.CharField(max_length=32, db_index=True)
    name = models.TextField()
    result = models.BinaryField(null=True)
    purge_at = models.FloatField(db_index=True)

    class Meta:
        app_label = "semel"
        db_table = "semel_django_step"
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.key_hash[:12]} {self.name}"
