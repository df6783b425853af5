"""The API. Nothing here knows of idempotency: two payments for one click cannot happen."""

from rest_framework import mixins, serializers, viewsets

from payments.models import Payment


class PaymentSerializer(serializers.ModelSerializer):
    """A payment as JSON."""

    class Meta:
        model = Payment
        fields = ("id", "order", "amount", "made")


class Payments(
    mixins.CreateModelMixin,
    mixins.ListModelMixin,
    mixins.RetrieveModelMixin,
    viewsets.GenericViewSet,
):
    """Payments of whoever asks."""

    queryset = Payment.objects.order_by("pk")
    serializer_class = PaymentSerializer

    def get_queryset(self):
        return super().get_queryset().filter(payer=self.request.user)

    def perform_create(self, serializer):
        serializer.save(payer=self.request.user)
