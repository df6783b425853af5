"""tus 1.0 and plain uploads over real servers, ASGI and WSGI."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from semel.uploads import UploadLimits
from semel.uploads.spool import Part, Spool
from semel.uploads.state import owner_hash
from tests.uploads.conftest import Start
from tests.uploads.harness import PIECE, TUS, Service, eventually, files_end_at

DATA = os.urandom(1000)
ALICE, BOB = [("X-User", "alice")], [("X-User", "bob")]


def digest(data: bytes, name: str = "sha-256") -> str:
    made = hashlib.new(name.replace("-", ""), data).digest()
    return f"{name}=:{base64.b64encode(made).decode()}:"


def checksum(data: bytes, name: str = "sha1") -> tuple[str, str]:
    return (
        "Upload-Checksum",
        f"{name} {base64.b64encode(hashlib.new(name, data).digest()).decode()}",
    )


# --- tus ----------------------------------------------------------------------------------------


def test_options_tell_what_the_server_can_do(tus: Service) -> None:
    answer = tus.ask("OPTIONS", "/")
    assert answer.status == 204
    assert answer.header("Tus-Version") == "1.0.0"
    assert answer.header("Tus-Max-Size") == str(tus.uploads.limits.max_size)
    assert "sha1" in (answer.header("Tus-Checksum-Algorithm") or "").split(",")
    assert set((answer.header("Tus-Extension") or "").split(",")) == {
        *("creation", "creation-with-upload", "checksum", "termination", "expiration")
    }


def test_a_file_goes_up_in_pieces_and_is_stored_under_its_digest(tus: Service) -> None:
    made = tus.create(len(DATA), [("Upload-Metadata", "filename dMOkZS50eHQ=,secret")])
    url = made.header("Location") or ""
    assert (made.status, made.header("Tus-Resumable")) == (201, "1.0.0")
    assert made.header("Upload-Expires")
    for offset in range(0, 1000, 300):
        assert tus.offset(url) == offset
        assert tus.found(url).complete is False
        answer = tus.patch(url, offset, DATA[offset : offset + 300])
        assert answer.status == 204
        assert answer.header("Upload-Offset") == str(min(offset + 300, 1000))
        assert answer.header("Upload-Expires")
    assert answer.header("Repr-Digest") == digest(DATA)
    assert answer.header("ETag") == f'"{hashlib.sha256(DATA).hexdigest()}"'
    head = tus.head(url)
    assert (head.status, head.header("Upload-Offset"), head.header("Upload-Length")) == (
        *(200, "1000"),
        "1000",
    )
    assert head.header("Upload-Metadata") == "filename dMOkZS50eHQ=,secret"
    assert head.header("Cache-Control") == "no-store"
    assert head.header("Repr-Digest") == digest(DATA)
    assert tus.found(url).describe() == {"filename": "täe.txt", "secret": ""}
    assert tus.content(url) == DATA


def test_an_empty_file_is_complete_when_it_is_made(tus: Service) -> None:
    url = tus.begin(0)
    assert tus.found(url).digest == hashlib.sha256(b"").hexdigest()
    assert tus.content(url) == b""


def test_the_first_bytes_may_come_with_the_creation(tus: Service) -> None:
    part = tus.create(len(DATA), body=DATA[:400])
    assert (part.status, part.header("Upload-Offset")) == (201, "400")
    url = part.header("Location") or ""
    assert tus.patch(url, 400, DATA[400:]).status == 204
    assert tus.content(url) == DATA
    whole = tus.create(len(DATA), body=DATA)
    assert (whole.status, whole.header("Upload-Offset")) == (201, "1000")
    assert whole.header("Repr-Digest") == digest(DATA)


def test_another_offset_is_a_conflict_and_changes_nothing(tus: Service) -> None:
    url = tus.begin(len(DATA))
    tus.patch(url, 0, DATA[:100])
    for offset in (0, 99, 101, 1000):
        assert tus.patch(url, offset, DATA[:50]).problem == "offset-conflict"
    assert tus.offset(url) == 100
    tus.patch(url, 100, DATA[100:])
    assert tus.patch(url, 100, DATA[100:]).status == 409
    again = tus.patch(url, 1000, b"")
    assert (again.status, again.header("Repr-Digest")) == (204, digest(DATA))
    assert tus.content(url) == DATA


def test_more_than_the_length_is_refused(tus: Service) -> None:
    url = tus.begin(100)
    assert tus.patch(url, 0, DATA[:101]).problem == "upload-invalid"
    chunked = (
        f"PATCH {url} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
        "Content-Type: application/offset+octet-stream\r\nTransfer-Encoding: chunked\r\n"
        "Connection: close\r\n\r\n"
    )
    body = b"".join(b"60\r\n" + bytes(0x60) + b"\r\n" for _ in range(3)) + b"0\r\n\r\n"
    assert b" 400 " in tus.raw(chunked.encode() + body).split(b"\r\n")[0]
    assert tus.offset(url) == 0
    assert tus.patch(url, 0, DATA[:100]).status == 204


def test_a_chunked_piece_needs_no_length(tus: Service) -> None:
    url = tus.begin(96)
    chunked = (
        f"PATCH {url} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
        "Content-Type: application/offset+octet-stream\r\nTransfer-Encoding: chunked\r\n"
        "Connection: close\r\n\r\n60\r\n"
    )
    assert b" 204 " in tus.raw(chunked.encode() + DATA[:96] + b"\r\n0\r\n\r\n").split(b"\r\n")[0]
    assert tus.content(url) == DATA[:96]


@pytest.mark.parametrize("name", ["sha1", "sha256", "sha512"])
def test_a_piece_is_held_to_its_checksum(tus: Service, name: str) -> None:
    url = tus.begin(len(DATA))
    wrong = tus.patch(url, 0, DATA[:500], [checksum(DATA[:499], name)])
    assert (wrong.status, wrong.problem) == (460, "checksum-mismatch")
    assert tus.offset(url) == 0
    assert tus.patch(url, 0, DATA[:500], [checksum(DATA[:500], name)]).status == 204
    assert tus.patch(url, 500, DATA[500:], [checksum(DATA[500:], name)]).status == 204
    assert tus.content(url) == DATA


def test_a_piece_is_held_to_its_content_digest(tus: Service) -> None:
    url = tus.begin(len(DATA))
    wrong = tus.patch(url, 0, DATA[:500], [("Content-Digest", digest(DATA))])
    assert (wrong.status, wrong.problem) == (400, "digest-mismatch")
    assert tus.offset(url) == 0
    fields = [("Content-Digest", f"{digest(DATA, 'sha-512')}, {digest(DATA)}")]
    assert tus.patch(url, 0, DATA, fields).status == 204
    assert tus.content(url) == DATA


@pytest.mark.parametrize("piece", [1000, 400])
def test_the_whole_is_held_to_the_repr_digest_of_its_creation(tus: Service, piece: int) -> None:
    promised = [("Repr-Digest", digest(DATA))]
    for content, status in ((DATA, 204), (DATA[:-1] + b"?", 400)):
        url = tus.create(len(DATA), promised).header("Location") or ""
        for offset in range(0, 1000, piece):
            answer = tus.patch(url, offset, content[offset : offset + piece])
        assert answer.status == status
    assert answer.problem == "digest-mismatch"
    assert tus.head(url).status == 404
    assert tus.uploads.storage.size(hashlib.sha256(content).hexdigest()) is None


def test_a_deleted_upload_is_gone_and_its_object_stays(tus: Service) -> None:
    url = tus.begin(len(DATA))
    tus.patch(url, 0, DATA[:10])
    assert tus.ask("DELETE", url, [TUS]).status == 204
    for answer in (tus.patch(url, 10, b"x"), tus.ask("DELETE", url, [TUS])):
        assert answer.problem == "upload-not-found"
    done = tus.create(len(DATA), body=DATA).header("Location") or ""
    assert tus.ask("DELETE", done, [TUS]).status == 204
    assert tus.head(done).status == 404
    assert tus.uploads.storage.size(hashlib.sha256(DATA).hexdigest()) == 1000


def test_a_method_may_be_named_in_a_header(tus: Service) -> None:
    url = tus.begin(len(DATA))
    fields = [TUS, PIECE, ("Upload-Offset", "0"), ("X-HTTP-Method-Override", "PATCH")]
    assert tus.ask("POST", url, fields, DATA).status == 204
    assert tus.content(url) == DATA


@pytest.mark.parametrize(
    ("method", "path", "headers", "problem"),
    [
        ("POST", "/", [("Tus-Resumable", "0.2.2"), ("Upload-Length", "1")], "upload-version"),
        ("PATCH", "/" + "0" * 32, [PIECE, ("Upload-Offset", "0")], "upload-version"),
        ("POST", "/", [TUS], "upload-invalid"),
        ("POST", "/", [TUS, ("Upload-Length", "-1")], "upload-invalid"),
        ("POST", "/", [TUS, ("Upload-Length", "1e3")], "upload-invalid"),
        ("POST", "/", [TUS, ("Upload-Length", "9" * 18)], "request-too-large"),
        ("POST", "/", [TUS, ("Upload-Length", "1"), ("Upload-Metadata", "a ?")], "upload-invalid"),
        (
            *("POST", "/"),
            [TUS, ("Upload-Length", "1"), ("Upload-Metadata", "a YQ==,a YQ==")],
            "upload-invalid",
        ),
        (
            *("POST", "/"),
            [TUS, ("Upload-Length", "1"), ("Upload-Metadata", "a " + "YQ==" * 2000)],
            "upload-invalid",
        ),
        ("POST", "/", [TUS, ("Upload-Length", "1"), ("Idempotency-Key", "a b")], "key-invalid"),
        ("PATCH", "/" + "0" * 32, [TUS, PIECE, ("Upload-Offset", "0")], "upload-not-found"),
        ("PATCH", "/" + "0" * 32, [TUS, PIECE], "upload-invalid"),
        ("PATCH", "/" + "0" * 32, [TUS, ("Upload-Offset", "0")], "upload-type"),
        (
            *("PATCH", "/" + "0" * 32),
            [TUS, PIECE, ("Upload-Offset", "0"), ("Upload-Checksum", "crc32 AAAA")],
            "upload-invalid",
        ),
        ("PATCH", "/../../etc/passwd", [TUS, PIECE, ("Upload-Offset", "0")], "upload-not-found"),
        ("PATCH", "/%2e%2e%2fstate", [TUS, PIECE, ("Upload-Offset", "0")], "upload-not-found"),
        ("DELETE", "/" + "F" * 32, [TUS], "upload-not-found"),
        ("GET", "/" + "0" * 32, [], "upload-method"),
        ("PUT", "/", [], "upload-method"),
        ("POST", "/", [("Content-Type", "multipart/form-data; boundary=x")], "upload-type"),
        ("POST", "/", [("Content-Digest", "sha-256=nonsense")], "upload-invalid"),
        ("POST", "/", [("Repr-Digest", "md5=:AAAA:")], "upload-invalid"),
    ],
)
def test_what_is_wrong_is_said(
    tus: Service, method: str, path: str, headers: list[tuple[str, str]], problem: str
) -> None:
    answer = tus.ask(method, path, headers)
    assert answer.problem == problem
    assert answer.header("Tus-Resumable") == "1.0.0"
    assert (answer.header("Tus-Version") == "1.0.0") is (problem == "upload-version")


# --- whose --------------------------------------------------------------------------------------


def test_an_upload_is_not_there_for_anybody_else(tus: Service) -> None:
    url = tus.create(len(DATA), ALICE).header("Location") or ""
    tus.patch(url, 0, DATA[:100], ALICE)
    assert tus.head(url, BOB).status == 404
    assert tus.patch(url, 100, b"x", BOB).problem == "upload-not-found"
    assert tus.ask("DELETE", url, [TUS, *BOB]).problem == "upload-not-found"
    assert tus.uploads.find("bob", url) is None
    assert tus.patch(url, 100, DATA[100:], ALICE).status == 204
    assert tus.content(url, "alice") == DATA


def test_whether_others_have_a_file_cannot_be_told_from_the_answer(tus: Service) -> None:
    alice = tus.ask("POST", "/", ALICE, DATA)
    bob = tus.ask("POST", "/", BOB, DATA)
    unheard = ("date", "location")
    said = [[(n, v) for n, v in a.headers if n.lower() not in unheard] for a in (alice, bob)]
    assert (alice.status, said[0]) == (bob.status, said[1])
    assert alice.header("Location") != bob.header("Location")


# --- by key -------------------------------------------------------------------------------------


def test_a_repeated_creation_with_a_key_gives_the_same_upload(tus: Service) -> None:
    key = ("Idempotency-Key", "holiday-1")
    first = tus.create(len(DATA), [key])
    url = first.header("Location") or ""
    tus.patch(url, 0, DATA[:300])
    again = tus.create(len(DATA), [key])
    assert (again.status, again.header("Location")) == (201, url)
    with_body = tus.create(len(DATA), [key], DATA[:10])
    assert with_body.header("Upload-Offset") == "300"
    tus.patch(url, 300, DATA[300:])
    assert tus.create(len(DATA), [key]).header("Location") == url
    assert tus.create(len(DATA) + 1, [key]).problem == "key-reused"
    assert tus.create(len(DATA), [key, ("Repr-Digest", digest(b""))]).problem == "key-reused"
    assert tus.create(len(DATA), [key, *ALICE]).header("Location") != url
    assert tus.content(url) == DATA


# --- plain --------------------------------------------------------------------------------------


def test_a_plain_upload_sent_again_gets_the_same_answer_and_is_stored_once(tus: Service) -> None:
    fields = [("Content-Digest", digest(DATA)), ("Repr-Digest", digest(DATA, "sha-512"))]
    first, second = (tus.ask("POST", "/", fields, DATA) for _ in range(2))
    assert first.status == second.status == 201
    unheard = [[h for h in a.headers if h[0].lower() != "date"] for a in (first, second)]
    assert unheard[0] == unheard[1]
    assert first.header("Repr-Digest") == digest(DATA)
    assert first.header("ETag") == f'"{hashlib.sha256(DATA).hexdigest()}"'
    assert tus.content(first.header("Location") or "") == DATA
    assert tus.offset(first.header("Location") or "") == 1000


@pytest.mark.parametrize("field", ["Content-Digest", "Repr-Digest"])
def test_a_plain_upload_is_held_to_its_digests(tus: Service, field: str) -> None:
    answer = tus.ask("POST", "/", [(field, digest(DATA))], DATA[:-1])
    assert answer.problem == "digest-mismatch"
    assert tus.uploads.storage.size(hashlib.sha256(DATA[:-1]).hexdigest()) is None
    assert tus.uploads.sweep() == 0  # nothing is left to clear away


def test_a_plain_upload_has_to_say_how_long_it_is(tus: Service) -> None:
    request = (
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    answer = tus.raw(request.encode() + b"1\r\nx\r\n0\r\n\r\n")
    # waitress turns a chunked body into one of known length before the application sees it
    assert b" 411 " in answer.split(b"\r\n")[0] or b"waitress" in answer


# --- quotas and expiry ---------------------------------------------------------------------------


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(start: Start) -> None:
    tus = start(limits=UploadLimits(max_size=100))
    for answer in (tus.create(101), tus.ask("POST", "/", [], bytes(101))):
        assert (answer.status, answer.problem) == (413, "request-too-large")
    assert tus.ask("POST", "/", [], bytes(100)).status == 201


@pytest.mark.parametrize("kind", ["asgi"])
def test_a_client_that_waits_for_the_word_to_send_is_refused_before_it_sends(start: Start) -> None:
    tus = start(limits=UploadLimits(max_size=100))
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 101\r\nExpect: 100-continue\r\n\r\n"
    with tus.connect() as connection:
        connection.sendall(head)
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")
    with tus.connect() as connection:
        connection.sendall(head.replace(b"101", b"100"))
        assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")


def test_what_a_caller_has_under_way_is_limited(start: Start) -> None:
    tus = start(limits=UploadLimits(max_size=100, caller_bytes=250, caller_uploads=3))
    urls = [tus.create(100, ALICE).header("Location") or "" for _ in range(2)]
    refused = tus.create(51, ALICE)
    assert (refused.status, refused.problem) == (429, "quota-exceeded")
    assert tus.ask("POST", "/", ALICE, bytes(51)).problem == "quota-exceeded"
    assert tus.create(100, BOB).status == 201
    assert tus.create(50, ALICE).status == 201
    assert tus.create(0, ALICE).problem == "quota-exceeded"  # a fourth, if a small one
    assert tus.patch(urls[0], 0, bytes(100), ALICE).status == 204  # what is complete counts no more
    assert tus.create(100, ALICE).status == 201


def test_what_all_have_under_way_is_limited(start: Start) -> None:
    tus = start(limits=UploadLimits(total_bytes=250))
    assert tus.create(100, ALICE).status == 201
    assert tus.create(100, BOB).status == 201
    full = tus.create(51, BOB)
    assert (full.status, full.problem, full.header("Retry-After")) == (507, "storage-full", "60")
    assert tus.create(50, BOB).status == 201


def test_a_limit_that_lets_nothing_through_is_refused() -> None:
    with pytest.raises(ValueError, match="caller_uploads has to be at least 1"):
        UploadLimits(caller_uploads=0)


def test_an_abandoned_upload_expires_and_is_cleared_away(start: Start) -> None:
    clock = [1000.0]
    tus = start(
        now=lambda: clock[0], expires=timedelta(hours=1), limits=UploadLimits(caller_uploads=2)
    )
    old = tus.begin(100)
    tus.patch(old, 0, bytes(50))
    clock[0] += 1800
    tus.patch(old, 50, bytes(10))  # its time begins anew
    done = tus.create(4, body=b"done").header("Location") or ""
    clock[0] += 3599
    assert tus.uploads.sweep() == 0
    assert tus.offset(old) == 60
    new = tus.begin(100)
    clock[0] += 1
    assert tus.head(old).status == tus.head(done).status == 404
    assert tus.patch(old, 60, bytes(40)).problem == "upload-not-found"
    assert tus.create(100).problem == "quota-exceeded"
    assert tus.uploads.sweep() == 2
    assert tus.create(100).status == 201
    assert tus.offset(new) == 0
    assert tus.uploads.storage.size(hashlib.sha256(b"done").hexdigest()) == 4


@pytest.mark.parametrize("kind", ["asgi"])  # waitress calls once it has the whole body
def test_sweeping_leaves_alone_what_is_being_sent(start: Start) -> None:
    clock = [1000.0]
    tus = start(now=lambda: clock[0], expires=timedelta(seconds=10))
    url = tus.begin(len(DATA))
    request = tus.request(url, 0, DATA)
    with tus.connect() as connection:
        connection.sendall(request[:-10])
        # Seen from outside: a request that asked would take the lock itself for a moment.
        (partial,) = (p for p in tus.uploads._spool._partial.iterdir() if p.is_file())
        held = f":{partial.stat().st_ino} "
        eventually(lambda: held in Path("/proc/locks").read_text())
        clock[0] += 100
        assert tus.uploads.sweep() == 0
        connection.sendall(request[-10:])
        assert b" 204 " in connection.recv(4096).split(b"\r\n")[0]
    assert tus.content(url) == DATA


def test_requests_set_the_sweep_going(start: Start) -> None:
    clock = [1000.0]
    tus = start(
        now=lambda: clock[0], expires=timedelta(seconds=10), sweep_every=timedelta(microseconds=1)
    )
    url = tus.begin(100)
    folder = tus.uploads._spool._partial
    assert len(list(folder.iterdir())) == 1
    clock[0] += 100
    assert tus.head(url).status == 404
    eventually(lambda: not list(folder.iterdir()))


def test_a_sweep_is_in_no_new_uploads_way(tmp_path: Path) -> None:
    """It sees the file of one that is just being made, and takes it for what a crash left."""
    spool = Spool(tmp_path, UploadLimits(caller_uploads=10_000))
    owner = owner_hash("alice")
    ended = threading.Event()

    def sweep() -> None:
        while not ended.is_set():
            spool.sweep()

    with ThreadPoolExecutor(2) as pool:
        sweeping = [pool.submit(sweep) for _ in range(2)]
        try:
            for number in range(2000):
                part = spool.reserve(owner, f"{number:032x}", 1)
                assert isinstance(part, Part)
                part.remove()
        finally:
            ended.set()
        for each in sweeping:
            each.result()


# --- what is acknowledged is durable -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["asgi"])
def test_bytes_then_the_offset_then_its_name_are_on_disk_before_the_answer(
    tus: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def spy(file: int) -> None:
        fsync(file)
        path = Path(os.readlink(f"/proc/self/fd/{file}"))
        kind = "folder" if path.is_dir() else "file"
        top = next((p for p in path.parts if p in ("partial", "state", "objects")), "other")
        synced.append(f"{top} {kind}")

    monkeypatch.setattr(os, "fsync", spy)
    state = ["state file", "state folder"]
    url = tus.begin(len(DATA))
    assert synced == ["partial folder", *state]
    synced.clear()
    tus.patch(url, 0, DATA[:500])
    assert synced == ["partial file", *state]
    synced.clear()
    tus.patch(url, 500, DATA[500:])
    assert synced[-4:] == ["objects file", "objects folder", *state]
    synced.clear()
    tus.ask("POST", "/", [], DATA)  # a copy: its bytes are on disk already, its name may not be
    assert synced == ["objects folder", *state]


# --- when the disk or the storage fails -----------------------------------------------------------


def test_a_full_disk_is_said_and_what_was_acknowledged_stays(tus: Service) -> None:
    url = tus.begin(2000)
    tus.patch(url, 0, DATA)
    with files_end_at(1500):
        full = tus.patch(url, 1000, DATA)
        assert (full.status, full.problem) == (507, "storage-full")
    assert tus.offset(url) == 1000
    assert tus.patch(url, 1000, DATA).status == 204
    assert tus.content(url) == DATA * 2


def test_a_stored_object_is_not_written_to_after_the_disk_had_no_room_for_the_state(
    tus: Service,
) -> None:
    data, other = os.urandom(100), os.urandom(100)
    url = tus.begin(len(data))
    with files_end_at(150):  # room for the file, and not for what is known of it
        assert tus.patch(url, 0, data).problem == "storage-full"
    assert tus.offset(url) == 0
    assert tus.patch(url, 0, other).status == 204
    assert tus.content(url) == other
    with tus.uploads.storage.open(hashlib.sha256(data).hexdigest()) as first:
        assert first.read() == data


def test_a_storage_that_fails_is_said_and_the_piece_can_be_sent_again(start: Start) -> None:
    from semel.testing.servers import S3, running

    pytest.importorskip("boto3")
    from tests.uploads.test_storage import s3_storage

    with running(S3) as server:
        tus = start(storage=s3_storage(server))
        url = tus.begin(len(DATA))
        assert tus.patch(url, 0, DATA[:500]).status == 204
        server.crash()
        down = tus.patch(url, 500, DATA[500:])
        assert (down.status, down.problem) == (503, "storage-unavailable")
        assert tus.offset(url) == 500
        assert tus.ask("POST", "/", [], DATA).problem == "storage-unavailable"
        server.start()
        assert tus.patch(url, 500, DATA[500:]).status == 204
        assert tus.content(url) == DATA
