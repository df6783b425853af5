"""The API: payments of whoever asks, up to a limit."""

from typing import Any

from django.db.models import QuerySet, Sum
from rest_framework import mixins, routers, serializers, viewsets

from django.urls import include, path
from shop.models import Payment

LIMIT = 1000


class PaymentSerializer(serializers.ModelSerializer):
    class Meta:
        model = Payment
        fields = ("id", "payee", "amount")


class Payments(mixins.CreateModelMixin, mixins.ListModelMixin, viewsets.GenericViewSet):
    queryset = Payment.objects.order_by("pk")
    serializer_class = PaymentSerializer

    def get_queryset(self) -> QuerySet[Payment]:
        return super().get_queryset().filter(payer=self.request.user)

    def perform_create(self, serializer: Any) -> None:
        serializer.save(payer=self.request.user)
        if self.get_queryset().aggregate(paid=Sum("amount"))["paid"] > LIMIT:
            raise serializers.ValidationError({"amount": ["this is more than you may pay"]})


router = routers.SimpleRouter()
router.register("payments", Payments)
urlpatterns = [path("", include(router.urls))]
