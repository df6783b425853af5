"""The API: bookings of whoever asks."""

from django.db import transaction
from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import NinjaAPI, Schema
from ninja.errors import HttpError
from ninja.responses import Status
from ninja.security import APIKeyHeader

from django.urls import path
from shop.models import Booking, Court, Customer


class CustomerKey(APIKeyHeader):
    param_name = "X-API-Key"

    def authenticate(self, request: HttpRequest, key: str | None) -> Customer | None:
        return Customer.objects.filter(api_key=key).first()


class Wanted(Schema):
    court: str
    hours: int


class Booked(Schema):
    id: int
    hours: int


api = NinjaAPI(auth=CustomerKey())


@api.get("/bookings", response=list[Booked])
def bookings(request):
    return list(Booking.objects.filter(customer=request.auth).order_by("pk"))


@api.post("/bookings", response={201: Booked})
@transaction.atomic
def book(request, wanted: Wanted):
    court = get_object_or_404(Court, name=wanted.court)
    made = Booking.objects.create(customer=request.auth, court=court, hours=wanted.hours)
    if wanted.hours > court.hours:
        raise HttpError(410, "there are not so many hours left")
    court.hours -= wanted.hours
    court.save()
    return Status(201, made)


urlpatterns = [path("", api.urls)]
