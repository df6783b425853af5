"""The journal: what it keeps through torn files, full disks, forks and kills; what it refuses."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semel import failpoints
from semel.client import (
    Journal,
    JournalDamaged,
    JournalError,
    JournalFull,
    JournalInUse,
    journal_file,
    records,
    stored_request,
)
from semel.client.stored_request import StoredRequest

KEY = bytes(range(32))


def request(key: str, body: bytes = b"{}", **other: Any) -> StoredRequest:
    headers = (("Content-Type", "application/json"),)
    return StoredRequest(key, "POST", "https://shop.example/charges", headers, body, 1.5)._replace(
        **other
    )


def keys(journal: Journal) -> list[str]:
    return [one.key for one in journal.unfinished()]


def finished(journal: Journal, key: str, *, settled: bool = True) -> None:
    journal.begin(request(key))
    journal.finish(key, settled=settled)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.journal"


@pytest.mark.parametrize("encryption_key", [None, KEY])
def test_what_is_unfinished_is_found_again_and_what_is_settled_is_not(
    path: Path, encryption_key: bytes | None
) -> None:
    with Journal(path, encryption_key=encryption_key) as journal:
        finished(journal, "a", settled=False)
        finished(journal, "b")
        journal.begin(request("c", b"\x00\xff"))
    with Journal(path, encryption_key=encryption_key) as journal:
        assert keys(journal) == ["a", "c"]
        assert journal.load(journal.unfinished()[1]) == request("c", b"\x00\xff")
        journal.forget("a")
    with Journal(path, encryption_key=encryption_key) as journal:
        assert keys(journal) == ["c"]


def test_a_request_is_durable_before_it_may_be_sent(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), fsync(fd)))
    with Journal(path) as journal:
        assert path.parent.stat().st_ino in synced  # the new name is durable, too
        synced.clear()
        journal.begin(request("a"))
        assert synced == [path.stat().st_ino]


def test_it_can_be_read_and_written_by_its_owner_only(path: Path) -> None:
    os.umask(0o022)
    with Journal(path) as journal:
        journal.begin(request("a"))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.with_name("shop.journal.lock").stat().st_mode) == 0o600


def test_a_file_that_is_cut_at_any_byte_keeps_all_whole_entries_and_can_be_written_on(
    path: Path,
) -> None:
    with Journal(path) as journal:
        head = path.stat().st_size
        ends = {}
        for name in ("a", "b", "c"):
            finished(journal, name, settled=False)
            ends[name] = path.stat().st_size
        journal.forget("b")
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        if 0 < size < head:  # the head is written before the file gets its name: no crash does this
            with pytest.raises(JournalDamaged):
                Journal(path)
            continue
        with Journal(path) as journal:
            left = [name for name, end in ends.items() if end <= size]
            assert keys(journal) == [n for n in left if n != "b" or size < len(whole)]
            finished(journal, "d", settled=False)
        with Journal(path) as journal:
            assert keys(journal)[-1] == "d"


def test_garbage_behind_the_end_is_cut_off(path: Path) -> None:
    with Journal(path) as journal:
        finished(journal, "a", settled=False)
    with path.open("ab") as file:
        file.write(b"\x00" * 100 + os.urandom(100))
    with Journal(path) as journal:
        finished(journal, "b", settled=False)
    with Journal(path) as journal:
        assert keys(journal) == ["a", "b"]


def test_a_flipped_bit_in_what_was_durable_is_said_wherever_it_is(path: Path) -> None:
    with Journal(path) as journal:
        start = path.stat().st_size
        finished(journal, "a", settled=False)
        end = path.stat().st_size
        finished(journal, "b", settled=False)
    whole = path.read_bytes()
    for at in range(start, end):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(JournalDamaged, match=f"byte {start}"):
            Journal(path)


def test_a_write_cut_short_that_nobody_was_promised_is_no_damage() -> None:
    data = records.MAGIC + records.frame(records.HEADER, 0, 0, b"")
    lost = records.frame(records.BEGUN, 1, len(data), b"never synced")
    later = records.frame(records.BEGUN, 2, len(data), b"of the same moment")
    found = records.scan(data + bytes(len(lost)) + later)
    assert (found.end, found.damaged_at) == (len(data), None)
    knowing = records.frame(records.BEGUN, 2, len(data + lost), b"written when it was durable")
    assert records.scan(data + bytes(len(lost)) + knowing).damaged_at == len(data)


def test_a_torn_file_of_many_bytes_is_looked_through_quickly(path: Path) -> None:
    with Journal(path) as journal:
        journal.begin(request("a", os.urandom(4_000_000)))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with Journal(path) as journal:  # a checksum at every offset would take hours
        assert keys(journal) == []


def test_another_file_is_not_taken_for_a_journal(path: Path) -> None:
    path.write_text("dear diary\n")
    with pytest.raises(JournalDamaged, match="no journal"):
        Journal(path)
    assert path.read_text() == "dear diary\n"


def test_two_journals_never_share_a_file(path: Path, tmp_path: Path) -> None:
    with Journal(path):
        with pytest.raises(JournalInUse, match="in use"):
            Journal(path)
        link = tmp_path / "link"
        link.symlink_to(path)
        with pytest.raises(JournalInUse):
            Journal(link)
    Journal(path).close()


def test_a_journal_that_is_dropped_gives_the_file_back(path: Path) -> None:
    Journal(path)
    Journal(path).close()


def test_of_many_processes_at_once_one_gets_the_journal(path: Path) -> None:
    code = (
        "import sys\nfrom semel.client import Journal, JournalInUse\n"
        "sys.stdin.readline()\n"
        f"try: journal = Journal({str(path)!r})\n"
        "except JournalInUse: print('refused', flush=True)\n"
        "else: print('opened', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(4)]
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [racer.stdout.readline().strip() for racer in racers]
    for racer in racers:
        racer.communicate("end\n")
    assert sorted(said) == ["opened", "refused", "refused", "refused"]
    Journal(path).close()


def in_child(work: Callable[[], None]) -> int:
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return status


def test_a_forked_child_does_not_write_into_its_parents_journal(path: Path) -> None:
    with Journal(path) as journal:
        finished(journal, "parent", settled=False)

        def child() -> None:
            with pytest.raises(JournalInUse, match="before the fork"):
                journal.begin(request("child"))
            with pytest.raises(JournalInUse):  # the parent has it still
                Journal(path)

        assert in_child(child) == 0
        finished(journal, "after", settled=False)
        assert keys(journal) == ["parent", "after"]


def test_a_child_that_outlives_its_parent_does_not_hold_the_lock(path: Path) -> None:
    reader, writer = os.pipe()
    forked, tell = os.pipe()

    def parent() -> None:
        journal = Journal(path)
        if os.fork() == 0:
            os.write(tell, b".")  # what runs after a fork has run
            os.close(writer)
            os.read(reader, 1)  # until the test is done
            os._exit(0)
        journal.begin(request("a"))

    assert in_child(parent) == 0
    os.close(reader)
    assert os.read(forked, 1) == b"."
    Journal(path).close()
    for descriptor in (writer, forked, tell):
        os.close(descriptor)


def test_a_full_disk_refuses_to_send_and_loses_nothing(path: Path) -> None:
    def child() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with Journal(path) as journal:
            finished(journal, "a", settled=False)
            size = path.stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, resource.RLIM_INFINITY))
            with pytest.raises(JournalFull, match="nothing was sent"):
                journal.begin(request("b"))
            assert path.stat().st_size == size
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )
            finished(journal, "c", settled=False)

    assert in_child(child) == 0
    with Journal(path) as journal:
        assert keys(journal) == ["a", "c"]


def test_an_answer_is_not_lost_because_the_disk_is_full(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(path) as journal:
        journal.begin(request("a"))

        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        journal.finish("a", settled=True)
        assert "No space left" in caplog.text
        monkeypatch.undo()
    with Journal(path) as journal:
        assert keys(journal) == ["a"]  # sent again, under its key: a replay


def test_after_a_failed_fsync_nothing_is_sent_any_more(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(path) as journal:
        with monkeypatch.context() as broken:

            def fails(_: int) -> None:
                raise OSError(5, "Input/output error")

            broken.setattr(os, "fsync", fails)
            with pytest.raises(JournalError, match="fsync failed"):
                journal.begin(request("a"))
        with pytest.raises(JournalError, match="open it anew"):
            journal.begin(request("b"))


def test_a_folder_that_is_not_there_or_not_ours_is_refused_clearly(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be written"):
        Journal(tmp_path / "nowhere" / "a.journal")
    with pytest.raises(JournalError, match="cannot be read"):
        Journal(tmp_path)
    tmp_path.chmod(0o755)
    with Journal(tmp_path / "a.journal") as journal:
        finished(journal, "a")
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)

    def child() -> None:
        if os.geteuid() == 0:
            os.seteuid(65534)
        tmp_path.joinpath("a.journal.lock")
        with pytest.raises(JournalError, match="cannot be written"):
            Journal(tmp_path / "a.journal")

    if os.geteuid() != 0:
        (tmp_path / "a.journal.lock").chmod(0o400)
    assert in_child(child) == 0


def test_a_read_only_journal_is_refused_clearly(path: Path) -> None:
    Journal(path).close()

    def child() -> None:
        path.parent.chmod(0o777)
        path.with_name("shop.journal.lock").chmod(0o666)
        path.chmod(0o444)
        if os.geteuid() == 0:
            os.seteuid(65534)
        with pytest.raises(JournalError, match="cannot be written"):
            Journal(path)

    for folder in list(path.parents)[:3]:
        folder.chmod(0o755)
    assert in_child(child) == 0


def test_unfinished_requests_fill_it_to_its_bound_and_no_further(path: Path) -> None:
    with Journal(path, max_bytes=400) as journal:
        finished(journal, "a", settled=False)
        with pytest.raises(JournalFull, match="resume them"):
            for number in range(10):
                finished(journal, f"b{number}", settled=False)
        journal.forget("a")
        finished(journal, "c", settled=False)  # there is room again


@pytest.mark.parametrize("encryption_key", [None, KEY])
def test_compaction_keeps_what_is_unfinished_and_the_file_small(
    path: Path, monkeypatch: pytest.MonkeyPatch, encryption_key: bytes | None
) -> None:
    monkeypatch.setattr(journal_file, "ROOM", 1000)
    with Journal(path, encryption_key=encryption_key) as journal:
        finished(journal, "kept", settled=False)
        for number in range(100):
            finished(journal, str(number))
            assert path.stat().st_size < 2500
        assert journal.load(journal.unfinished()[0]) == request("kept")
    assert [p.name for p in path.parent.iterdir() if p.name.endswith(".new")] == []
    with Journal(path, encryption_key=encryption_key) as journal:
        assert keys(journal) == ["kept"]


@pytest.mark.parametrize("point", ["client_in_compaction", "client_compacted"])
def test_a_kill_in_compaction_leaves_the_old_or_the_new(
    path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setattr(journal_file, "ROOM", 1000)

    def child() -> None:
        with Journal(path) as journal:
            finished(journal, "kept", settled=False)
            failpoints.arm(f"{point}=kill")
            for number in range(100):
                finished(journal, str(number))

    assert os.WTERMSIG(in_child(child)) == signal.SIGKILL
    with Journal(path) as journal:
        assert keys(journal) == ["kept"]
        for number in range(50):
            finished(journal, str(number))


def test_threads_share_it_and_lose_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_file, "ROOM", 1000)  # compaction among them
    with Journal(path) as journal:

        def work(name: int) -> None:
            for number in range(20):
                finished(journal, f"{name}-{number}", settled=number % 5 != 0)

        threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    with Journal(path) as journal:
        assert sorted(keys(journal)) == sorted(
            f"{name}-{number}" for name in range(6) for number in (0, 5, 10, 15)
        )


def test_the_file_is_not_replaced_while_another_thread_makes_it_durable(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, leave = threading.Event(), threading.Event()
    fsync, failed = os.fsync, []

    def slow_once(descriptor: int) -> None:
        if not reached.is_set():
            reached.set()
            assert leave.wait(20)
        fsync(descriptor)

    with Journal(path) as journal:

        def begin(key: str) -> None:
            try:
                journal.begin(request(key))
            except JournalError as error:
                failed.append(error)

        for number in range(20):
            finished(journal, str(number))
        before = path.stat().st_ino
        monkeypatch.setattr(os, "fsync", slow_once)
        slow = threading.Thread(target=begin, args=("slow",))
        slow.start()
        assert reached.wait(20)
        monkeypatch.setattr(journal_file, "ROOM", 0)
        compacting = threading.Thread(target=journal._file.append, args=(b"",))
        compacting.start()
        compacting.join(0.2)
        leave.set()
        slow.join(20)
        compacting.join(20)
        assert failed == []
        assert path.stat().st_ino != before


def test_a_key_names_one_request(path: Path) -> None:
    with Journal(path) as journal:
        assert journal.begin(request("a")) is False
        assert keys(journal) == []  # it is being sent
        journal.finish("a", settled=False)
        assert keys(journal) == ["a"]
        assert journal.begin(request("a")) is True
        with pytest.raises(JournalError, match="with another request"):
            journal.begin(request("a", b"another"))
        journal.finish("a", settled=True)
        assert keys(journal) == []


def test_what_is_too_old_for_the_service_to_remember_is_not_sent_again(path: Path) -> None:
    with Journal(path, clock=lambda: 1.5 + 3600, keys_last=timedelta(hours=1)) as journal:
        finished(journal, "a", settled=False)
        (found,) = journal.resume(object())  # type: ignore[arg-type]  # nothing is sent with it
        assert found.response is None
        assert "keys_last" in str(found.error)
        assert keys(journal) == ["a"]


def test_an_encrypted_journal_shows_nothing_and_opens_with_its_key_only(path: Path) -> None:
    with Journal(path, encryption_key=KEY) as journal:
        finished(journal, "the-key", settled=False)
    data = path.read_bytes()
    for secret in (b"the-key", b"shop.example", b"POST", b"json"):
        assert secret not in data
    with pytest.raises(JournalError, match="is encrypted: give encryption_key"):
        Journal(path)
    with pytest.raises(JournalError, match="another one"):
        Journal(path, encryption_key=bytes(32))
    with pytest.raises(ValueError, match="give 32 bytes"):
        Journal(path, encryption_key=b"short")
    plain = path.with_name("plain")
    Journal(plain).close()
    with pytest.raises(JournalError, match="is not encrypted: leave out"):
        Journal(plain, encryption_key=KEY)


def test_a_sealed_record_of_another_journal_is_not_taken(path: Path) -> None:
    other = path.with_name("other")
    for one in (path, other):
        with Journal(one, encryption_key=KEY) as journal:
            head = one.stat().st_size
            finished(journal, "a", settled=False)
    path.write_bytes(path.read_bytes()[:head] + other.read_bytes()[head:])
    with pytest.raises(JournalError, match="altered"):
        Journal(path, encryption_key=KEY)


def test_a_closed_journal_refuses(path: Path) -> None:
    journal = Journal(path)
    journal.close()
    with pytest.raises(JournalError, match="is closed"):
        journal.begin(request("a"))


TEXT = st.text(st.characters(codec="latin-1"))


@given(
    st.builds(
        StoredRequest,
        TEXT,
        TEXT,
        TEXT,
        st.lists(st.tuples(TEXT, TEXT)).map(tuple),
        st.binary(),
        st.floats(0),
    )
)
def test_a_request_survives_its_binary_form(one: StoredRequest) -> None:
    assert stored_request.decode(stored_request.encode(one)) == one


@given(st.binary())
def test_what_is_no_request_is_a_value_error(data: bytes) -> None:
    try:
        stored_request.decode(data)
    except ValueError:
        pass


@given(st.lists(st.binary(max_size=50), max_size=8), st.integers(0, 500), st.binary(max_size=30))
def test_a_scan_finds_what_was_written_before_any_cut(
    payloads: list[bytes], cut: int, garbage: bytes
) -> None:
    data, ends = records.MAGIC, []
    for number, payload in enumerate(payloads):
        data += records.frame(records.BEGUN, number, len(data), payload)
        ends.append(len(data))
    cut = min(len(data), len(records.MAGIC) + cut)
    found = records.scan(data[:cut] + garbage)
    whole = sum(end <= cut for end in ends)
    assert [r.payload for r in found.records[:whole]] == payloads[:whole]
    assert found.damaged_at is None
