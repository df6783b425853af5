"""The gateway: a reverse proxy that gives any service in any language idempotency keys.

`semel gateway --upstream http://127.0.0.1:3000 --store sqlite:///keys.db`. Needs `semel[gateway]`.
"""

__all__: list[str] = []  # its interface is the command
