from __future__ import annotations

from django.db import models


class Charge(models.Model):
    order = models.CharField(max_length=50)
    amount = models.IntegerField(default=0)
