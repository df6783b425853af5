"""Makes the tables and two people with their tokens."""

import os

from django.core.management import call_command

import django

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project")
    django.setup()
    call_command("migrate", "auth", verbosity=0)
    call_command("migrate", run_syncdb=True, verbosity=0)
    from django.contrib.auth.models import User
    from rest_framework.authtoken.models import Token

    for name in ("alice", "bob"):
        user = User.objects.create_user(name, password="secret")
        Token.objects.create(user=user, key=f"token-of-{name}")
