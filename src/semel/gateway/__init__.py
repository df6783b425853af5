"""The gateway: a reverse proxy that gives any service in any language idempotency keys.

`semel gateway --upstream http://127.0.0.1:3000 --store sqlite:///keys.db`. Needs `semel[gateway]`.
The command and its TOML file are the interface; nothing here is for import.
"""

__all__: list[str] = []  # its interface is the command
