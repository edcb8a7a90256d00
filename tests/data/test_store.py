"""Stores give exactly the bytes asked for, or a clear error; faults that pass are lived through."""

from __future__ import annotations

import errno
import http.server
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from genus.data.bucket import PART
from genus.data.store import Bucket, Folder, Store, UnreadableError, open_store
from genus.errors import ConfigError, DataError, MachineError
from object_storage import (
    S3,
    Fault,
    FaultyProxy,
    answer,
    close,
    cut,
    delay,
    first,
    silence,
    slow,
)

DATA = bytes(range(256)) * 400
ODD_NAME = "a b+c%20é&=.tar"
RETRY = 1.5


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries for 1.5 seconds, none of them silent for longer than half a second."""
    monkeypatch.setenv("GENUS_STORE_RETRY_S", str(RETRY))
    monkeypatch.setenv("GENUS_STORE_TIMEOUT_S", "0.5")


@pytest.fixture(params=["folder", "s3", "http"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "folder":
        return open_store(f"{tmp_path}/in/here/")
    url: str = request.getfixturevalue("bucket_url")
    if request.param == "s3":
        return open_store(f"{url}/in/here/")
    server: S3 = request.getfixturevalue("s3_environment")
    return open_store(f"{server.filer}/buckets/{url.removeprefix('s3://')}/in/here/")


# ---- what every store does -----------------------------------------------------------------------


def test_files_come_back_exactly(store: Store) -> None:
    for name in ("0.tar", ODD_NAME, "deeper/1.tar"):
        store.write(name, DATA)
        assert store.size(name) == len(DATA)
        assert store.read_all(name) == DATA
        assert store.read(name, 5, 70_000) == DATA[5:70_000]
        assert store.read(name, len(DATA) - 1, len(DATA)) == DATA[-1:]
        assert store.read(name, 7, 7) == b""
    store.write("0.tar", b"new")
    assert store.read_all("0.tar") == b"new"
    store.write("empty", b"")
    assert (store.read_all("empty"), store.size("empty")) == (b"", 0)


def test_names_are_those_directly_in_it(store: Store) -> None:
    for name in ("1.tar", "0.tar", "deeper/2.tar"):
        store.write(name, b"x")
    if store.url.startswith("http"):
        with pytest.raises(DataError, match="can't list its files"):
            store.names()
    else:
        assert store.names() == ["0.tar", "1.tar"]


def test_large_files_come_in_parts(store: Store) -> None:
    data = os.urandom(2 * PART + 12_345)
    store.write("large", data)
    assert store.read_all("large") == data
    assert store.read("large", 11, len(data) - 22) == data[11:-22]


def test_many_spans_at_once_keep_their_order_and_errors(store: Store) -> None:
    store.write("a", DATA)
    store.write("b", DATA[::-1])
    spans = [("ab"[i % 2], 97 * i, 97 * i + i) for i in range(300)]
    found = store.read_many([*spans, ("none", 0, 1), ("a", 0, len(DATA) + 1)])
    contents = {"a": DATA, "b": DATA[::-1]}
    assert found[:300] == [contents[name][start:stop] for name, start, stop in spans]
    assert isinstance(found[300], UnreadableError)
    assert isinstance(found[301], DataError)
    assert not isinstance(found[301], UnreadableError)


def test_what_is_missing_or_too_short_is_said(store: Store) -> None:
    store.write("short", b"12345")
    for read in (lambda: store.read("no.tar", 0, 1), lambda: store.read_all("no.tar")):
        with pytest.raises(UnreadableError, match=r"no\.tar.* not there.*check"):
            read()
    with pytest.raises(UnreadableError, match=r"no\.tar"):
        store.size("no.tar")
    for start in (0, 7):
        with pytest.raises(DataError, match="short is 5 bytes long, but bytes up to 9 are wanted"):
            store.read("short", start, 9)
    for name in ("../secret", "/etc/passwd", "a//b", "", "a/.."):
        with pytest.raises(DataError, match="no name of a file"):
            store.read(name, 0, 1)
        with pytest.raises(DataError, match="no name of a file"):
            store.write(name, b"")
    with pytest.raises(ValueError, match="no span"):
        store.read("short", 3, 2)


def test_pickled_stores_work_in_spawned_processes(store: Store) -> None:
    store.write("0.tar", DATA)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(store.read, ("0.tar", 3, 9)) == DATA[3:9]
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.url, copy.read_all("0.tar")) == (store.url, DATA)


# ---- folders -------------------------------------------------------------------------------------


def test_a_folder_hands_out_its_files(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(DATA)
    file = Folder(tmp_path).open("0.tar")
    assert os.pread(file, 5, 2) == DATA[2:7]
    os.close(file)


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Folder(tmp_path)
    store.write("0.tar", b"old")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"can't write .*0\.tar \(No space left.*free space"):
        store.write("0.tar", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["0.tar"]
    assert store.read_all("0.tar") == b"old"


def test_a_folder_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="nowhere is not there"):
        open_store(str(tmp_path / "nowhere")).names()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnreadableError, match="file/x is not there"):
        open_store(str(tmp_path / "file")).size("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnreadableError, match=r"folder can't be read \(Is a directory\)"):
        Folder(tmp_path).read("folder", 0, 1)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_what_the_machine_lacks_is_no_fault_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def lacks(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    (tmp_path / "0.tar").write_bytes(DATA)
    monkeypatch.setattr(os, "open", lacks)
    remedy = "use fewer workers" if number == errno.ENOMEM else "ulimit -n"
    for read in (
        lambda: Folder(tmp_path).read("0.tar", 0, 1),
        lambda: Folder(tmp_path).read_many([("0.tar", 0, 1)]),
    ):
        with pytest.raises(MachineError, match=rf"0\.tar can't be read .*{remedy}"):
            read()


# ---- urls and rights -----------------------------------------------------------------------------


def test_urls_that_cannot_be_are_refused() -> None:
    with pytest.raises(DataError, match="'ftp://x' is no place for data"):
        open_store("ftp://x")
    with pytest.raises(DataError, match="names no bucket"):
        open_store("s3:///folder")
    for url in ("https://me:hidden@host/x", "https://host/x?hidden=1", "s3://key:hidden@b/x"):
        with pytest.raises(DataError, match="give credentials by the environment") as failure:
            open_store(url)
        assert "hidden" not in str(failure.value)


def test_seconds_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENUS_STORE_RETRY_S", "soon")
    with pytest.raises(ConfigError, match="GENUS_STORE_RETRY_S=soon: expected a number of seconds"):
        open_store("s3://bucket")


def test_a_missing_bucket_is_said_and_an_empty_prefix_is_no_error(bucket_url: str) -> None:
    assert open_store(f"{bucket_url}/nothing/here").names() == []
    missing = open_store("s3://no-such-bucket")
    for read in (missing.names, lambda: missing.read("x", 0, 1), lambda: missing.read_all("x")):
        with pytest.raises(UnreadableError, match=r"no-such-bucket.* there is no such bucket"):
            read()


def test_wrong_and_missing_rights_are_said_at_once(
    bucket_url: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(bucket_url).write("0.tar", DATA)
    open_store("s3://public").write("0.tar", DATA)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-and-secret")
    before = proxy.asked.total()
    store = open_store(bucket_url)
    for read in (store.names, lambda: store.read_all("0.tar"), lambda: store.size("0.tar")):
        with pytest.raises(UnreadableError, match=r"access denied .*check AWS_ACCESS_") as failure:
            read()
        assert "wrong-and-secret" not in str(failure.value)
    assert proxy.asked.total() == before + 3  # no second tries
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    assert open_store("s3://public").read_all("0.tar") == DATA
    with pytest.raises(UnreadableError, match="access denied"):
        open_store(bucket_url).read_all("0.tar")


def test_no_credentials_at_all_are_said(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    # where a cloud's machines learn who they are; here nobody listens
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://169.254.1.1:1")
    with pytest.raises(UnreadableError, match="there are no credentials; check AWS_ACCESS_KEY_ID"):
        open_store(bucket_url).read_all("0.tar")


def test_google_buckets_are_read(
    s3_environment: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SeaweedFS plays Google: its XML API is close enough for reading."""
    open_store("s3://public/google").write("0.tar", DATA)
    account = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    settings = {**account, "gcs_base_url": s3_environment.endpoint, "disable_oauth": True}
    (tmp_path / "account.json").write_text(json.dumps(settings))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
    store = open_store("gs://public/google")
    assert store.names() == ["0.tar"]
    assert store.read("0.tar", 3, 300) == store.read_all("0.tar")[3:300] == DATA[3:300]
    assert store.size("0.tar") == len(DATA)


def test_a_web_server_without_ranges_is_said(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(DATA)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        store = open_store(f"http://127.0.0.1:{server.server_address[1]}")
        assert store.read_all("0.tar") == DATA
        with pytest.raises(UnreadableError, match="gives no parts of files"):
            store.read("0.tar", 3, 9)
        with pytest.raises(DataError, match="server answers 501"):
            store.write("1.tar", b"")
        server.shutdown()


# ---- faults --------------------------------------------------------------------------------------

PASSING = {
    "500": answer(500),
    "503": answer(503, Retry_After="1"),
    "429": answer(429),
    "408": answer(408),
    "cut": cut(1000),
    "cut before the body": cut(0),
    "closed": close(),
    "delayed": delay(0.2),
    "slow": slow(200_000),
    "silent": silence(),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_faults_that_pass_are_lived_through(
    bucket_url: str, proxy: FaultyProxy, fault: Fault
) -> None:
    store = open_store(bucket_url)
    store.write("0.tar", DATA)
    proxy.asked.clear()
    tries = 1 if fault.pace or fault == delay(0.2) else 3
    proxy.schedule = first(2, fault)
    assert store.read("0.tar", 10, 90_000) == DATA[10:90_000]
    assert proxy.asked.total() == tries
    proxy.asked.clear()
    assert store.read_all("0.tar") == DATA
    assert proxy.asked.total() == tries


def test_pauses_double_and_are_random(
    bucket_url: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[tuple[float, float]] = []

    def shortest(low: float, high: float) -> float:
        pauses.append((low, high))
        return 0.0

    monkeypatch.setattr("random.uniform", shortest)
    proxy.schedule = first(10, answer(500))
    open_store(bucket_url).names()
    doubled = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10]
    assert [high for _, high in pauses] == pytest.approx(doubled)
    assert [low for low, _ in pauses] == pytest.approx([pause / 2 for pause in doubled])


LASTING = {
    "500": (answer(500), "the server answers 500 after .* tries"),
    "cut": (cut(1000), "the connection broke off after .* tries"),
    "closed": (close(), "the connection broke off after .* tries"),
    "silent": (silence(), "no answer in time after .* tries.*GENUS_STORE_TIMEOUT_S"),
    "much too slow": (slow(20_000), "no answer in time"),
}


@pytest.mark.parametrize(("fault", "message"), LASTING.values(), ids=LASTING)
def test_faults_that_last_end_in_an_error(
    bucket_url: str, proxy: FaultyProxy, fault: Fault, message: str
) -> None:
    store = open_store(bucket_url)
    store.write("0.tar", DATA)
    proxy.schedule = first(1000, fault)
    begin = time.monotonic()
    with pytest.raises(UnreadableError, match=rf"test-\w+/0\.tar: {message}"):
        store.read("0.tar", 0, len(DATA))
    assert time.monotonic() - begin < 3 * RETRY


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (answer(403), r"access denied \(403\); check AWS_ACCESS_KEY_ID"),
        (answer(404), "it is not there; check the url"),
        (answer(301), "in another region; set AWS_REGION"),
        (answer(501), "the server answers 501"),
    ],
)
def test_what_cannot_pass_is_not_tried_again(
    bucket_url: str, proxy: FaultyProxy, fault: Fault, message: str
) -> None:
    proxy.schedule = first(1000, fault)
    with pytest.raises(UnreadableError, match=message):
        open_store(bucket_url).read("0.tar", 0, 1)
    assert proxy.asked.total() == 1


def test_listing_sizing_and_writing_are_retried_too(bucket_url: str, proxy: FaultyProxy) -> None:
    store = open_store(bucket_url)
    proxy.schedule = first(1, answer(503))
    store.write("0.tar", DATA)
    assert store.names() == ["0.tar"]
    proxy.asked.clear()
    assert store.size("0.tar") == len(DATA)
    assert proxy.asked.total() == 2


def test_one_bad_file_does_not_hurt_the_others(bucket_url: str, proxy: FaultyProxy) -> None:
    store = open_store(bucket_url)
    names = [f"{i}.tar" for i in range(40)]
    for name in names:
        store.write(name, DATA)
    proxy.asked.clear()
    bad, flaky = first(1000, close(), "/7.tar"), first(1, answer(500))
    proxy.schedule = lambda *asked: bad(*asked) or flaky(*asked)
    found = store.read_many([(name, 3, 99) for name in names])
    assert isinstance(found.pop(7), UnreadableError)
    assert found == [DATA[3:99]] * 39


def test_a_dead_server_costs_the_retry_time_once(
    bucket_url: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many files are asked for, in a batch or one after the other."""
    monkeypatch.setenv("GENUS_STORE_RETRY_S", "1")
    monkeypatch.setenv("GENUS_STORE_TIMEOUT_S", "100")
    monkeypatch.setattr("genus.data.bucket.DEAD_STALL", 0.2)
    store = Bucket(bucket_url)
    store.write("0.tar", DATA)
    proxy.schedule = first(1000, close())
    while not store._is_dead:  # they give up where the next pause would be too long
        found = store.read_many([(f"{i}.tar", 0, 9) for i in range(64)])
        assert all(isinstance(one, UnreadableError) for one in found)
    proxy.asked.clear()
    for i in range(64, 70):
        with pytest.raises(UnreadableError, match=r"broke off like all else for \d+ s; try again"):
            store.read(f"{i}.tar", 0, 9)
    proxy.schedule = first(1000, silence())  # 100 seconds each, would they wait as ever
    found = store.read_many([(f"{i}.tar", 0, 9) for i in range(70, 110)])
    assert all("no answer in time like all else" in str(one) for one in found)
    assert set(proxy.asked.values()) == {1}
    assert len(proxy.asked) == 46
    proxy.schedule = lambda *_: None
    assert store.read("0.tar", 0, 9) == DATA[:9]  # it is back
    assert not store._is_dead
    proxy.asked.clear()
    proxy.schedule = first(2, answer(503))
    assert store.read("0.tar", 0, 9) == DATA[:9]
    assert proxy.asked.total() == 3


def test_a_bad_file_among_good_ones_has_all_of_its_tries(
    bucket_url: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Successes of others while it fails: the store is not dead, and the next bad file gets its own
    full time; what can't pass says nothing about the store."""
    store = Bucket(bucket_url)
    store.write("good.tar", DATA)
    store._failing_since = time.monotonic() - 100 * RETRY  # a failure long ago...
    store.read("good.tar", 0, 9)  # ... is forgotten
    proxy.schedule = first(3, answer(500), "bad.tar")
    store.write("bad.tar", DATA)
    proxy.asked.clear()
    good = threading.Thread(target=store.read_many, args=([("good.tar", 0, 9)] * 20,))
    good.start()
    assert store.read("bad.tar", 0, 9) == DATA[:9]
    good.join()
    with pytest.raises(UnreadableError, match="it is not there"):
        store.read("none.tar", 0, 9)
    assert store._failing_since == float("inf")
    proxy.schedule = first(30, answer(500), "bad.tar")
    monkeypatch.setattr("random.uniform", lambda low, high: 0.1)
    over = threading.Event()

    def read_good() -> None:
        while not over.is_set():
            assert store.read("good.tar", 0, 9) == DATA[:9]

    good = threading.Thread(target=read_good)
    good.start()
    try:
        with pytest.raises(UnreadableError, match=r"500 after \d+ tries, [12] s of failures"):
            store.read("bad.tar", 0, 9)
    finally:
        over.set()
        good.join()


def test_spans_are_read_at_once(bucket_url: str, proxy: FaultyProxy) -> None:
    """32 requests wait in the proxy together: one after the other they would wait for ever."""
    store = open_store(bucket_url)
    store.write("0.tar", DATA)
    together = threading.Barrier(32)

    def wait(method: str, path: str, before: int) -> None:
        together.wait(timeout=10)

    proxy.schedule = wait
    found = store.read_many([("0.tar", i, i + 10) for i in range(32)])
    assert found == [DATA[i : i + 10] for i in range(32)]


def test_nobody_listens_and_no_such_host(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENUS_STORE_RETRY_S", "0.3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(UnreadableError, match=r"no connection to the server after \d+ tries"):
        open_store(bucket_url).read_all("0.tar")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no.such.host.invalid")
    with pytest.raises(UnreadableError, match="its host is not known"):
        open_store(bucket_url).read_all("0.tar")


# ---- processes -----------------------------------------------------------------------------------


def _read_or_say(store: Bucket, answers: multiprocessing.SimpleQueue[str]) -> None:
    try:
        answers.put(repr(store.read("0.tar", 0, 3)))
    except RuntimeError as error:
        answers.put(str(error))


def test_a_forked_process_refuses_instead_of_hanging(bucket_url: str) -> None:
    store = Bucket(bucket_url)
    store.write("0.tar", DATA)
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    child = fork.Process(target=_read_or_say, args=(store, answers))
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert "forked process: start workers by 'spawn'" in answers.get()


SCRIPT = """
import atexit, sys, threading
from genus.data import request_thread
from genus.data.store import open_store
# registered before the first request, so it runs after the requests are cancelled
atexit.register(lambda: print(len(request_thread._answers)))
store = open_store(sys.argv[1])
read = lambda: store.read("0.tar", 0, 3)
if sys.argv[2] == "thread":
    threading.Thread(target=read, daemon=True).start()
    sys.stdin.readline()
    print(len(request_thread._answers))
else:
    read()
"""


@pytest.mark.parametrize("how", ["thread", "interrupt"])
def test_a_request_under_way_does_not_hold_the_exit(
    bucket_url: str, proxy: FaultyProxy, how: str
) -> None:
    variables = {"GENUS_STORE_RETRY_S": "100", "GENUS_STORE_TIMEOUT_S": "100"}
    asked = threading.Event()

    def schedule(method: str, path: str, before: int) -> Fault:
        asked.set()
        return silence()

    proxy.schedule = schedule
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, bucket_url, how],
        env={**os.environ, **variables, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert asked.wait(60)
        if how == "interrupt":
            process.send_signal(signal.SIGINT)
        output, errors = process.communicate("\n", timeout=20)
    finally:
        process.kill()
    if how == "interrupt":
        assert errors.strip().endswith("KeyboardInterrupt")
    else:
        assert process.returncode == 0, errors
        # no thread of obstore's comes back to a Python that is no more
        assert output == "1\n0\n"
