"""The tables of DjangoStore: records and steps."""

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Step",
            fields=[
                ("digest", models.CharField(max_length=64, primary_key=True, serialize=False)),
                ("key_hash", models.CharField(db_index=True, max_length=32)),
                ("name", models.TextField()),
                ("result", models.BinaryField(null=True)),
                ("purge_at", models.FloatField(db_index=True)),
            ],
            options={
                "db_table": "semel_django_step",
                "default_permissions": ("view",),
            },
        ),
        migrations.CreateModel(
            name="Record",
            fields=[
                ("token", models.BigAutoField(primary_key=True, serialize=False)),
                ("key_hash", models.CharField(max_length=32, unique=True, verbose_name="key")),
                (
                    "state",
                    models.PositiveSmallIntegerField(
                        choices=[(1, "in flight"), (2, "completed"), (3, "parked"), (4, "expired")]
                    ),
                ),
                ("attempt", models.PositiveIntegerField()),
                ("owner", models.BinaryField()),
                ("fingerprint", models.BinaryField()),
                ("lease_until", models.FloatField()),
                ("due_at", models.FloatField(null=True)),
                ("purge_at", models.FloatField(null=True)),
                ("answer", models.BinaryField(null=True)),
                ("reason", models.TextField(null=True)),
                ("request", models.BinaryField(null=True)),
            ],
            options={
                "db_table": "semel_django_record",
                "permissions": (("settle_record", "Can park, release and settle operations"),),
                "default_permissions": ("view",),
                "indexes": [
                    models.Index(fields=["due_at"], name="semel_django_due"),
                    models.Index(fields=["state", "lease_until"], name="semel_django_state"),
                ],
            },
        ),
    ]
