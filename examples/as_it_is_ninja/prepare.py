"""Makes the tables, two customers and a court."""

import os

from django.core.management import call_command

import django

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project")
    django.setup()
    call_command("migrate", run_syncdb=True, verbosity=0)
    from shop.models import Court, Customer

    for name in ("alice", "bob"):
        Customer.objects.create(name=name, api_key=f"key-of-{name}")
    Court.objects.create(name="north", hours=20)
