"""Payments, in cents."""

from django.conf import settings
from django.db import models


class Payment(models.Model):
    payer = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT)
    payee = models.CharField(max_length=100)
    amount = models.PositiveIntegerField()

    class Meta:
        db_table = "payment"
