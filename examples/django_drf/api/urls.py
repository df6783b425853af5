"""Where everything is."""

from django.contrib import admin
from payments.views import Payments
from rest_framework.routers import DefaultRouter

from django.urls import path

router = DefaultRouter()
router.register("payments", Payments)

urlpatterns = [path("admin/", admin.site.urls), *router.urls]
