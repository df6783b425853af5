"""The tables of DjangoStore: records and steps."""

from django.db import migrations, models

from semel.web.django.tables import BytesField, StepNameField, drop_tables, migrate_tables


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunPython(migrate_tables, drop_tables)],
            state_operations=[
                migrations.CreateModel(
                    name="RecordedStep",
                    fields=[
                        ("id", models.BigAutoField(primary_key=True, serialize=False)),
                        ("key", BytesField(max_length=16)),
                        ("name", StepNameField()),
                        ("result", BytesField(null=True)),
                        ("purge_at", models.FloatField()),
                    ],
                    options={
                        "verbose_name": "step",
                        "db_table": "semel_step",
                        "default_permissions": ("view",),
                        "indexes": [models.Index(fields=["purge_at"], name="semel_step_due")],
                        "constraints": [
                            models.UniqueConstraint(fields=["key", "name"], name="semel_step_key")
                        ],
                    },
                ),
                migrations.CreateModel(
                    name="StoredRecord",
                    fields=[
                        ("token", models.BigAutoField(primary_key=True, serialize=False)),
                        ("key", BytesField(max_length=16)),
                        (
                            "state",
                            models.SmallIntegerField(
                                choices=[
                                    (1, "in flight"),
                                    (2, "completed"),
                                    (3, "parked"),
                                    (4, "expired"),
                                ]
                            ),
                        ),
                        ("attempt", models.IntegerField()),
                        ("owner", BytesField(max_length=64)),
                        ("fingerprint", BytesField(max_length=64)),
                        ("lease_until", models.FloatField()),
                        ("due_at", models.FloatField(null=True)),
                        ("purge_at", models.FloatField(null=True)),
                        ("answer", BytesField(null=True)),
                        ("reason", models.TextField(null=True)),
                        ("request", BytesField(null=True)),
                    ],
                    options={
                        "verbose_name": "record",
                        "db_table": "semel_record",
                        "permissions": (
                            ("settle_record", "Can park, release and settle operations"),
                        ),
                        "default_permissions": ("view",),
                        "indexes": [
                            models.Index(fields=["due_at"], name="semel_record_due"),
                            models.Index(
                                fields=["state", "lease_until"], name="semel_record_abandoned"
                            ),
                        ],
                        "constraints": [
                            models.UniqueConstraint(fields=["key"], name="semel_record_key")
                        ],
                    },
                ),
            ],
        ),
    ]
