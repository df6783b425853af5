"""What is put on the wire, to the byte, and what is made of whatever comes back."""

from __future__ import annotations

import datetime
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from semel.checker.exchange import Manner, WireRequest, WireResponse
from semel.checker.wire import Wire

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: 1\r\nX-A: 2\r\n\r\nhi"


class Server:
    """Takes connections, keeps what they send, answers what it was told to."""

    def __init__(self, answer: bytes, context: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self.received: list[bytes] = []
        self.context = context
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.closed = threading.Event()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.one, args=(connection,), daemon=True).start()

    def one(self, connection: socket.socket) -> None:
        if self.context is not None:
            try:
                connection = self.context.wrap_socket(connection, server_side=True)
            except ssl.SSLError:
                return  # the client does not trust us
        with connection:
            connection.settimeout(5)
            got = b""
            while not self.complete(got) and (chunk := connection.recv(65536)):
                got += chunk
            self.received.append(got)
            if self.answer:
                connection.sendall(self.answer)
            else:
                self.closed.wait(5)

    @staticmethod
    def complete(got: bytes) -> bool:
        head, found, body = got.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        return bool(found) and length is not None and len(body) >= int(length[1])


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def serve(answer: bytes = OK, context: ssl.SSLContext | None = None) -> Server:
        servers.append(Server(answer, context))
        return servers[-1]

    yield serve
    for server in servers:
        server.closed.set()
        server.socket.close()


def post(*headers: tuple[str, bytes], manner: Manner = Manner.WHOLE) -> WireRequest:
    return WireRequest("POST", "/x?y=1", headers, b"0123456789", manner)


def send(server: Server, request: WireRequest, timeout: float = 5) -> WireResponse:
    return Wire(f"http://127.0.0.1:{server.port}/", timeout).send(request)


def test_doubled_headers_and_odd_bytes_go_out_as_they_are(serve: Callable[..., Server]) -> None:
    server = serve()
    answer = send(server, post(("Idempotency-Key", b'"a'), ("Idempotency-Key", b"\xe9\x01")))
    assert (answer.status, answer.body, answer.all("x-a")) == (200, b"hi", ["1", "2"])
    assert (
        b'Idempotency-Key: "a\r\nIdempotency-Key: \xe9\x01\r\n\r\n0123456789' in server.received[0]
    )
    assert server.received[0].startswith(b"POST /x?y=1 HTTP/1.1\r\nHost: 127.0.0.1:")


def test_a_header_of_the_user_takes_the_place_of_ours(serve: Callable[..., Server]) -> None:
    server = serve()
    send(server, post(("content-type", b"text/plain")))
    assert server.received[0].lower().count(b"content-type") == 1


def test_half_a_body_is_half_a_body(serve: Callable[..., Server]) -> None:
    server = serve()
    assert not send(server, post(manner=Manner.HALF)).status
    while not server.received:
        pass
    assert server.received[0].endswith(b"\r\n\r\n01234")


def test_a_slow_body_arrives_whole(serve: Callable[..., Server]) -> None:
    server = serve()
    answer = send(server, post(manner=Manner.SLOW))
    assert (answer.status, server.received[0].endswith(b"0123456789")) == (200, True)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhi",
        b"I am no HTTP\r\n\r\n",
        b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 9_000_000,
    ],
    ids=["short", "chunk cut off", "no http", "nothing", "endless"],
)
def test_what_is_no_whole_answer_is_none(serve: Callable[..., Server], answer: bytes) -> None:
    got = send(serve(answer), post())
    assert got.status == 0
    assert got.failure


def test_a_server_that_never_answers_is_not_waited_for(serve: Callable[..., Server]) -> None:
    assert send(serve(b""), post(), timeout=0.2).failure == "timed out"


def test_chunks_and_interim_answers_are_read(serve: Callable[..., Server]) -> None:
    chunked = b"HTTP/1.1 201 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n1\r\n!\r\n0\r\n\r\n"
    answer = send(serve(b"HTTP/1.1 100 Continue\r\n\r\n" + chunked), post())
    assert (answer.status, answer.body) == (201, b"hi!")


def test_over_tls_the_certificate_counts(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, private = tmp_path / "c.pem", tmp_path / "k.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    no = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, no))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, private)
    url = f"https://127.0.0.1:{serve(OK, context).port}/"
    refused = Wire(url, 5).send(post())
    assert "CERTIFICATE_VERIFY_FAILED" in refused.failure
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    assert Wire(url, 5).send(post()).status == 200
