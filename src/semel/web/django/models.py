"""The tables of `DjangoStore` as models, for migrations and the admin; the store writes by SQL.

The tables are those of `semel.stores.portable.schema`, which `SQLAlchemyStore` has too.
"""

from __future__ import annotations

from django.db import models

from semel.core.keys import reference
from semel.stores.portable.schema import RECORD, STEP
from semel.web.django import tables


class StoredRecord(models.Model):
    """A record. Times are seconds since the epoch by the database's clock."""

    vars().update(tables.fields(RECORD))

    class Meta:
        app_label = "semel"
        db_table = RECORD.name
        verbose_name = "record"
        default_permissions = ("view",)
        permissions = (("settle_record", "Can park, release and settle operations"),)
        indexes = tables.indexes(RECORD)
        constraints = tables.constraints(RECORD)

    def __str__(self) -> str:
        return self.reference

    @property
    def reference(self) -> str:
        """The short public name that problem responses and logs show."""
        return reference(self.key)

    @property
    def key_hash(self) -> str:
        """The key in hexadecimal."""
        key: bytes = self.key
        return key.hex()


class RecordedStep(models.Model):
    """A recorded step. Its result is null while it was only begun."""

    vars().update(tables.fields(STEP))

    class Meta:
        app_label = "semel"
        db_table = STEP.name
        verbose_name = "step"
        default_permissions = ("view",)
        indexes = tables.indexes(STEP)
        constraints = tables.constraints(STEP)

    def __str__(self) -> str:
        return f"{reference(self.key)} {self.name}"
