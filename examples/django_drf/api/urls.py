"""Where everything is."""

from django.contrib import admin
from django.urls import path
from payments.views import Payments
from rest_framework.routers import DefaultRouter

router = DefaultRouter()
router.register("payments", Payments)

urlpatterns = [path("admin/", admin.site.urls), *router.urls]
