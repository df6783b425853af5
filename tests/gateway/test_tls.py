"""TLS to the service: its certificate is checked unless that is switched off."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.gateway.harness import Service, gateway


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate for 127.0.0.1, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "service")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "service.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


@pytest.fixture
def secured(certificate: Path) -> Iterator[Service]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    service = Service()
    plain = service._serve

    def serve(connection: object) -> None:
        try:
            plain(context.wrap_socket(connection, server_side=True))  # type: ignore[arg-type]
        except OSError:
            return

    service._serve = serve  # type: ignore[assignment, method-assign]
    with service.running():
        yield service


def test_a_certificate_that_is_not_trusted_is_refused_before_anything_is_sent(
    secured: Service,
) -> None:
    url = f"https://127.0.0.1:{secured.port}"
    with gateway(0, upstream={"url": url}) as front:
        assert front.send().problem == "upstream-unavailable"
    assert not secured.requests


def test_one_that_is_trusted_is_taken(secured: Service, certificate: Path) -> None:
    url = f"https://127.0.0.1:{secured.port}"
    for upstream in ({"ca": str(certificate)}, {"verify": False}):
        with gateway(0, upstream={"url": url, **upstream}) as front:
            assert front.send().status == 201
            assert front.send().replayed
    assert len(secured.requests) == 2


def test_one_for_another_name_is_refused(secured: Service, certificate: Path) -> None:
    url = f"https://localhost:{secured.port}"
    with gateway(0, upstream={"url": url, "ca": str(certificate)}) as front:
        assert front.send().problem == "upstream-unavailable"
    assert not secured.requests
