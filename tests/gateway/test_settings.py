"""The TOML file: what it may say, and what is said of a mistake in it."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from semel.gateway import settings as module
from semel.gateway.app import Gateway
from semel.gateway.settings import GatewayPolicy, load, settings
from semel.gateway.values import SettingsError

ROOT = Path(__file__).parents[2]
LEAST = {"upstream": {"url": "http://127.0.0.1:3000"}, "store": "memory://"}


def test_everything_can_be_said_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(
        """
store = "sqlite:///keys.db"
listen = "[::1]:8081"
workers = 2
grace = "10s"

[upstream]
url = "https://api.internal:8443/v1"
connect_timeout = 0.5
timeout = "2m"
connections = 10
keep_alive = "500ms"
resend = 0
preserve_host = false
verify = false

[callers]
header = "X-User"
session_cookie = "session"
behind_proxy = true

[limits]
head = "16KiB"
headers = 40
body = "2GiB"
client_timeout = 5

[health]
live = "/live"
ready = "/ready"

[issuer]
secret_env = "SECRET"
lifetime = "7d"
path = "/keys"

[policy]
required = true
expires = "48h"
keep_statuses = [201, 422]
keep_headers = ["Location"]
max_request_body = "1MiB"

[routes."POST /charges"]
forward_key = true

[routes."PUT /files/{name:path}"]
methods = ["PUT"]
required = false

[routes."/hooks/{name}"]
off = true
"""
    )
    made = load(path)
    assert made.address == ("::1", 8081)
    assert made.grace == timedelta(seconds=10)
    assert made.upstream.keep_alive == timedelta(milliseconds=500)
    assert made.limits.body == 2 * 1024**3
    assert made.issuer is not None
    assert made.issuer.lifetime == timedelta(days=7)
    assert made.policy.keep_statuses == {201, 422}
    assert made.policy.keep_headers == {"location"}
    assert made.policy.guarantee == "at-most-once"
    charges = made.routes["POST /charges"]
    assert charges is not None
    assert (charges.guarantee, charges.required, charges.expires) == (
        "at-least-once",
        True,
        timedelta(hours=48),
    )
    files = made.routes["PUT /files/{name:path}"]
    assert files is not None
    assert (files.methods, files.guarantee) == (("PUT",), "at-most-once")
    assert made.routes["/hooks/{name}"] is None


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text('store = "memory://"\n[upstream]\nurl = "http://a"\ntimeout = 7\n')
    made = load(path, upstream="http://b:1", listen="0.0.0.0:1", store=None)
    assert made.upstream.url == "http://b:1"
    assert made.upstream.timeout == timedelta(seconds=7)
    assert (made.store, made.listen) == ("memory://", "0.0.0.0:1")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"store": None}, "store: it is missing; give store = "),
    ({"upstream": None}, "upstream: it is missing; give [upstream] url = "),
    ({"upstream": "http://a"}, "[upstream]: it is a table"),
    ({"upstream": {}}, "[upstream] url: it is missing"),
    ({"upstream": {"url": "127.0.0.1:3000"}}, "[upstream] url: give http://host:port"),
    ({"upstream": {"url": "http://me:secret@a"}}, "[upstream] url: leave user"),
    ({"upstream": {"url": "https://a", "ca": "/no/file"}}, "[upstream] ca: there is no file"),
    ({"upstream": {"url": "http://a", "timeout": "soon"}}, "[upstream] timeout: give seconds"),
    ({"upstream": {"url": "http://a", "timeout": -1}}, "[upstream] timeout: give seconds"),
    ({"upstream": {"url": "http://a", "verify": "no"}}, "[upstream] verify: give true or false"),
    ({"upstream": {"url": "http://a", "connections": 0}}, "[upstream] connections: give 1"),
    (
        {"upstream": {"url": "http://a", "connections": True}},
        "[upstream] connections: give a whole",
    ),
    (
        {"upstream": {"url": "http://127.0.0.1:8080"}},
        "listen: 127.0.0.1:8080 is the upstream's own",
    ),
    ({"listen": "8080"}, 'listen: give "host:port"'),
    ({"listen": 8080}, "listen: give text in quotes"),
    ({"workers": 0}, "workers: give a whole number of 1 or more"),
    ({"workers": 2}, "workers: memory:// is one process's own"),
    ({"polcy": {}}, "polcy: there is no such field; did you mean policy?"),
    ({"policy": {"expire": 1}}, "[policy] expire: there is no such field; did you mean expires?"),
    ({"policy": {"expires": "1 week"}}, "[policy] expires: give seconds"),
    ({"policy": {"expires": 0}}, "[policy] expires: give a timedelta longer than 0"),
    ({"policy": {"methods": "POST"}}, "[policy] methods: give a list"),
    ({"policy": {"methods": ["GET"]}}, "[policy] methods: ['GET'] change nothing"),
    ({"policy": {"required": "yes"}}, "[policy] required: give one of"),
    ({"policy": {"guarantee": "atomic"}}, '[policy] guarantee: "atomic" needs the database'),
    ({"policy": {"key": "order"}}, "[policy] key: a function cannot be written"),
    ({"policy": {"fingerprint": "key"}}, '[policy] fingerprint: "key" goes with'),
    ({"policy": {"required": "issued"}}, 'required = "issued" and next_key need an [issuer]'),
    ({"policy": {"max_request_body": "big"}}, "[policy] max_request_body: give a whole number"),
    ({"routes": {"charges": {}}}, "[routes] route 'charges': give a path"),
    ({"routes": {"/a": {"off": True, "required": True}}}, '[routes."/a"] off: it leaves'),
    (
        {"routes": {"/a": {"lese": 1}}},
        '[routes."/a"] lese: there is no such field; did you mean lease',
    ),
    ({"limits": {"head": 0}}, "[limits] head: give a whole number of 1 or more"),
    ({"health": {"live": "live"}}, "[health] live: give a path that begins with /"),
    ({"issuer": {}}, "[issuer] secret_env: it is missing"),
]


@pytest.mark.parametrize(("change", "said"), WRONG, ids=[said for _, said in WRONG])
def test_a_mistake_is_named_with_its_fix(change: dict[str, Any], said: str) -> None:
    document = {name: value for name, value in {**LEAST, **change}.items() if value is not None}
    with pytest.raises(SettingsError, match=re.escape(said)):
        settings(document)


def test_a_file_that_is_no_toml_or_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gateway\.toml: No such file"):
        load(tmp_path / "gateway.toml")
    (tmp_path / "gateway.toml").write_text("store = ")
    with pytest.raises(SettingsError, match=r"gateway\.toml: Invalid value"):
        load(tmp_path / "gateway.toml")


@pytest.mark.parametrize("secret", [None, "short"])
def test_a_secret_that_is_missing_or_short_is_named(
    monkeypatch: pytest.MonkeyPatch, secret: str | None
) -> None:
    monkeypatch.delenv("SECRET", raising=False)
    if secret is not None:
        monkeypatch.setenv("SECRET", secret)
    with pytest.raises(SettingsError, match=r"\[issuer\] secret"):
        Gateway(settings({**LEAST, "issuer": {"secret_env": "SECRET"}}))


def test_every_field_is_explained_in_the_guide() -> None:
    guide = (ROOT / "docs" / "guides" / "gateway.md").read_text()
    for kind in (
        module.Upstream,
        module.Callers,
        module.GatewayLimits,
        module.Health,
        module.IssuerSettings,
    ):
        for field in dataclasses.fields(kind):
            assert f"`{field.name}`" in guide, f"{kind.__name__}.{field.name}"
    assert "forward_key" in {field.name for field in dataclasses.fields(GatewayPolicy)}


def test_the_files_of_the_guide_are_valid() -> None:
    guide = (ROOT / "docs" / "guides" / "gateway.md").read_text()
    files = re.findall(r"^```toml\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    assert len(files) == 2
    for text in files:
        settings({**LEAST, **tomllib.loads(text)})


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "semel.cli", "gateway", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_check_says_what_is_promised_and_serves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(
        'store = "memory://"\n[upstream]\nurl = "http://127.0.0.1:3000"\n'
        '[routes."POST /charges"]\nforward_key = true\n'
    )
    checked = run("--config", str(path), "--check")
    assert checked.returncode == 0, checked.stderr
    assert "POST /charges: POST/PATCH: at least once" in checked.stdout
    assert "other routes: POST/PATCH: at most once" in checked.stdout


def test_a_wrong_file_ends_with_status_2_and_one_line(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text('store = "memory://"\n[upstream]\nurl = "http://a"\n[policy]\nlese = 1\n')
    checked = run("--config", str(path), "--check")
    assert checked.returncode == 2
    assert checked.stderr == "[policy] lese: there is no such field; did you mean lease?\n"
    assert run("--upstream", "http://a", "--store", "nosuch://").returncode == 2
