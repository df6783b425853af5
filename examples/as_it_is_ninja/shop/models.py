"""Customers with their API keys, courts, and the hours that are booked."""

from django.db import models


class Customer(models.Model):
    name = models.CharField(max_length=40)
    api_key = models.CharField(max_length=40, unique=True)


class Court(models.Model):
    name = models.CharField(max_length=40, unique=True)
    hours = models.PositiveIntegerField()


class Booking(models.Model):
    customer = models.ForeignKey(Customer, on_delete=models.PROTECT)
    court = models.ForeignKey(Court, on_delete=models.PROTECT)
    hours = models.PositiveIntegerField()

    class Meta:
        db_table = "booking"
