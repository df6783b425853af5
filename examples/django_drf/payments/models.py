"""What the API keeps."""

from django.conf import settings
from django.db import models


class Payment(models.Model):
    """Money that somebody has paid, in cents."""

    payer = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT)
    order = models.CharField(max_length=100)
    amount = models.PositiveIntegerField()
    made = models.DateTimeField(auto_now_add=True)
