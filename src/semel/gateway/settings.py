"""The settings of a gateway: one TOML file, or the options of the command line.

Every table's fields are those of the class of its name below. Durations are seconds or text such as
`"30s"`, sizes are bytes or text such as `"64MiB"`.
"""

from __future__ import annotations

import dataclasses
import os
import ssl
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from semel.core.policy import MEBIBYTE, Policy, PolicyError
from semel.core.routes import Routes
from semel.gateway import values
from semel.gateway.values import SettingsError
from semel.issuer import Issuer

_NOT_HERE = {
    "key": 'a function cannot be written in TOML; give "payload", or let clients send the header',
    "fingerprint": '"key" goes with a `key` function; give "raw" or "json"',
    "guarantee": '"atomic" needs the database of the service itself, which a gateway never'
    ' touches; give "at-most-once" (the default) or "at-least-once"',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatewayPolicy(Policy):
    """The rules for one route: the fields of `Policy`, and what only a gateway has."""

    forward_key: bool = False
    """The service takes the key: it gets it, and does a repeated request once. Then an unknown
    outcome is sent again under the same key instead of being parked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upstream:
    """`[upstream]`: the service behind the gateway."""

    url: str
    """`http://` or `https://`, host and port; a path in it goes before every request's."""
    connect_timeout: timedelta = timedelta(seconds=5)
    """How long a connection may take to be had, waiting for a free one included. When it is over,
    nothing was sent: 503, and a retry runs."""
    timeout: timedelta = timedelta(seconds=60)
    """How long the service may be silent, before its response and within it (nginx's default). When
    it is over the outcome is unknown: parked, or 504. An event stream may be silent for ever."""
    connections: int = 100
    """Connections to the service at a time, of each worker."""
    keep_alive: timedelta = timedelta(seconds=1)
    """How long an idle connection is used again. Shorter than the service's own limit (gunicorn
    2 s, Node 5 s, uvicorn 5 s): a request sent into a connection that is just being closed has an
    unknown outcome."""
    resend: int = 2
    """With `forward_key`: how often an unknown outcome is sent again before the client is told."""
    preserve_host: bool = True
    """Send the client's `Host`. False: the upstream's own."""
    verify: bool = True
    """For `https://`: check the certificate and its name."""
    ca: str | None = None
    """For `https://`: a file of certificates to trust, instead of the system's."""

    def ssl(self) -> ssl.SSLContext | bool:
        """Return how the connection is secured."""
        if not self.verify:
            return False
        return ssl.create_default_context(cafile=self.ca) if self.ca is not None else True

    def check(self) -> None:
        """Raise `SettingsError` for an address or a number that cannot be used."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError(
                f"[upstream] url: give http://host:port or https://host:port, not {self.url!r}"
            )
        if parts.username or parts.query or parts.fragment:
            raise SettingsError("[upstream] url: leave user, query and fragment out of it")
        if self.ca is not None and not Path(self.ca).is_file():
            raise SettingsError(f"[upstream] ca: there is no file {self.ca}")
        if self.connections < 1 or self.resend < 0:
            raise SettingsError("[upstream] connections: give 1 or more; resend: 0 or more")

    @property
    def address(self) -> tuple[str | None, int]:
        """The host and port that `url` names."""
        parts = urlsplit(self.url)
        return parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Callers:
    """`[callers]`: whose key it is."""

    header: str | None = None
    """A header in which an authenticating proxy in front names the verified caller. That proxy has
    to overwrite what the client sends. Without it: a hash of `Authorization`."""
    session_cookie: str | None = None
    """The cookie that carries the credentials where `Authorization` does not."""
    behind_proxy: bool = False
    """Believe and extend the `X-Forwarded-*` and `Forwarded` that come in. Off: they are replaced
    by what the gateway itself sees, for whoever connects can write them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatewayLimits:
    """`[limits]`: what a client may send."""

    head: int = 64 * 1024
    """Bytes of a request's line and headers (431)."""
    headers: int = 100
    """Number of its headers (431)."""
    body: int = 1024 * MEBIBYTE
    """Bytes of a body without a key (413); with one `max_request_body` of the policy counts."""
    client_timeout: timedelta = timedelta(seconds=20)
    """How long a head may take to arrive, and a body without a key be silent (408)."""

    def check(self) -> None:
        """Raise `SettingsError` for a limit that lets nothing through."""
        for bound in ("head", "headers", "body"):
            if getattr(self, bound) < 1:
                raise SettingsError(f"[limits] {bound}: give a whole number of 1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Health:
    """`[health]`: paths that the gateway itself serves."""

    live: str = "/-/health"
    """204 while the process runs."""
    ready: str = "/-/ready"
    """204 while the store responds, else 503. Says nothing about the service."""

    def check(self) -> None:
        """Raise `SettingsError` for what is no path."""
        for name in ("live", "ready"):
            if not getattr(self, name).startswith("/"):
                raise SettingsError(f"[health] {name}: give a path that begins with /")


@dataclasses.dataclass(frozen=True, kw_only=True)
class IssuerSettings:
    """`[issuer]`: signs keys for clients (`semel.Issuer`)."""

    secret_env: str
    """The environment variable that holds the signing key, 32 bytes or more."""
    lifetime: timedelta = timedelta(hours=24)
    """How long an issued key is good."""
    path: str = "/idempotency-keys"
    """Where keys are handed out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """All settings of a gateway. `load` and `settings` make one."""

    upstream: Upstream
    store: str
    listen: str = "127.0.0.1:8080"
    workers: int = 1
    grace: timedelta = timedelta(seconds=30)
    """How long what is in flight may take to end after SIGTERM."""
    callers: Callers = dataclasses.field(default_factory=Callers)
    limits: GatewayLimits = dataclasses.field(default_factory=GatewayLimits)
    health: Health = dataclasses.field(default_factory=Health)
    issuer: IssuerSettings | None = None
    policy: GatewayPolicy = dataclasses.field(
        default_factory=lambda: GatewayPolicy(guarantee="at-most-once")
    )
    routes: Mapping[str, GatewayPolicy | None] = dataclasses.field(default_factory=dict)

    def check(self) -> None:
        """Raise `SettingsError` for the first setting that makes no sense."""
        self.upstream.check()
        self._check_serving()
        self.health.check()
        self.limits.check()
        self._check_policies()

    def _check_serving(self) -> None:
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise SettingsError(
                f'listen: give "host:port", such as "127.0.0.1:8080", not {self.listen!r}'
            )
        if self.workers < 1:
            raise SettingsError(f"workers: give a whole number of 1 or more, not {self.workers}")
        if self.workers > 1 and self.store.startswith("memory:"):
            raise SettingsError(
                "workers: memory:// is one process's own, so a repeat at another worker would run"
                " again; give a store that they share, such as sqlite:///keys.db"
            )
        if self.address[1] and self.address == self.upstream.address:
            raise SettingsError(f"listen: {self.listen} is the upstream's own address")

    def _check_policies(self) -> None:
        for policy in (self.policy, *self.routes.values()):
            if self.issuer is None and policy and (policy.required == "issued" or policy.next_key):
                raise SettingsError('required = "issued" and next_key need an [issuer] table')
        try:
            Routes(self.policy, self.routes)
        except PolicyError as error:
            raise SettingsError(f"[routes] {error}") from error

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    def make_issuer(self) -> Issuer | None:
        """Return who signs keys. Raises `SettingsError` where the secret is missing or short."""
        if self.issuer is None:
            return None
        name = self.issuer.secret_env
        secret = os.environ.get(name)
        if not secret:
            raise SettingsError(f"[issuer] secret_env: the environment variable {name} is not set")
        try:
            return Issuer(secret, lifetime=self.issuer.lifetime, path=self.issuer.path)
        except ValueError as error:
            raise SettingsError(f"[issuer] {error}") from error


def load(path: Path, **overrides: object) -> GatewaySettings:
    """Read a TOML file; `overrides` are `upstream`, `store`, `listen`, `workers` where not None.

    Raises `SettingsError`.
    """
    return settings(values.read(path), **overrides)


def settings(document: Mapping[str, object], **overrides: object) -> GatewaySettings:
    """Make settings of a TOML document. Raises `SettingsError` naming the field and the fix."""
    given = {name: value for name, value in overrides.items() if value is not None}
    tables = dict(document)
    if "upstream" in given:
        upstream = values.table(tables.get("upstream", {}), "[upstream]")
        tables["upstream"] = {**upstream, "url": given.pop("upstream")}
    tables.update(given)
    values.known(tables, [field.name for field in dataclasses.fields(GatewaySettings)], "")
    for name, fix in (
        ("upstream", '[upstream] url = "http://127.0.0.1:3000"'),
        ("store", 'store = "sqlite:///keys.db"'),
    ):
        if name not in tables:
            raise SettingsError(f"{name}: it is missing; give {fix}, or --{name}")
    default = _policy(tables.pop("policy", {}), GatewayPolicy(), "[policy]")
    assert default is not None
    parts: dict[str, object] = {"policy": default}
    parts["routes"] = {
        pattern: _policy(rules, default, f'[routes."{pattern}"]')
        for pattern, rules in values.table(tables.pop("routes", {}), "[routes]").items()
    }
    for name, kind in _TABLES.items():
        if name in tables:
            parts[name] = values.build(kind, tables.pop(name), f"[{name}]")
    made: GatewaySettings = values.build(GatewaySettings, tables, "", **parts)
    made.check()
    return made


_TABLES: dict[str, type] = {
    "upstream": Upstream,
    "callers": Callers,
    "limits": GatewayLimits,
    "health": Health,
    "issuer": IssuerSettings,
}


def _policy(rules: object, base: GatewayPolicy, where: str) -> GatewayPolicy | None:
    fields = dict(values.table(rules, where))
    if fields.pop("off", False) is True:
        if fields:
            raise SettingsError(f"{where} off: it leaves the route alone, so no other field counts")
        return None
    for name, fix in _NOT_HERE.items():
        bad = {"key": fields.get(name) != "payload"}.get(
            name, fields.get(name) in ("key", "atomic")
        )
        if name in fields and bad:
            raise SettingsError(f"{where} {name}: {fix}")
    forwards = fields.get("forward_key", base.forward_key)
    if "guarantee" not in fields and (base.guarantee is None or "forward_key" in fields):
        fields["guarantee"] = "at-least-once" if forwards else "at-most-once"
    try:
        policy: GatewayPolicy = values.replace(base, fields, where)
    except PolicyError as error:
        raise SettingsError(f"{where} {error}") from error
    return policy
