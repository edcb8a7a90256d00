"""obstore's clients for buckets, and the thread that all requests of a process go through.

Requests are made by an event loop in a thread of its own. So whoever asks waits in Python, where
signals and Ctrl-C reach it, and at the interpreter's end open requests are cancelled, not awaited.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from genus.errors import DataError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, GCSStore, HTTPStore, RetryConfig, S3Store

T = TypeVar("T")

EXIT_WAIT = 2.0
"""Seconds that open requests may hold the interpreter's end, at most."""
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


def check_url(url: str) -> None:
    """DataError for a url of a bucket that can't be, or that holds a secret."""
    parts = urlsplit(url)
    if not parts.netloc:
        raise DataError(f"'{url}' names no bucket: expected {parts.scheme}://bucket/folder")
    if "@" in parts.netloc or parts.query or parts.fragment:
        # urls end up in logs, configs and messages
        raise DataError(
            f"a url of data can't hold a login, '?' or '#' ({parts.scheme}://"
            f"{parts.netloc.rpartition('@')[2]}...): give credentials by the environment"
        )


def make_client(url: str, stall: float, limit: float) -> S3Store | GCSStore | HTTPStore:
    """A client for the folder ``url``, which sends every request once.

    ``stall``: seconds without any byte after which a request is given up; ``limit``: seconds of a
    whole request. Credentials, region and endpoint come from the environment.
    """
    from obstore.store import GCSStore, HTTPStore, S3Store

    parts = urlsplit(url)
    endpoints = [os.environ.get(name, "") for name in _ENDPOINTS]
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=min(10.0, stall)),
        "read_timeout": timedelta(seconds=stall),
        "timeout": timedelta(seconds=limit),
        # only where the user wrote http:// themselves
        "allow_http": any(text.startswith("http://") for text in [url, *endpoints]),
    }
    once: RetryConfig = {"max_retries": 0}  # Bucket tries again itself, body included
    if parts.scheme in ("http", "https"):
        return HTTPStore(url, client_options=options, retry_config=once)
    prefix = parts.path.strip("/") or None
    if parts.scheme == "gs":
        return GCSStore(parts.netloc, prefix=prefix, client_options=options, retry_config=once)
    return S3Store(
        parts.netloc,
        prefix=prefix,
        client_options=options,
        retry_config=once,
        credential_provider=_profile(),
    )


def _profile() -> Any:
    """Credentials from ~/.aws by boto3, where the environment has none and there is a profile.

    None leaves it to obstore, which knows the environment, web identities and instance roles.
    """
    files = {"AWS_SHARED_CREDENTIALS_FILE": "credentials", "AWS_CONFIG_FILE": "config"}
    exists = "AWS_PROFILE" in os.environ or any(
        Path(os.environ.get(variable) or Path.home() / ".aws" / file).exists()
        for variable, file in files.items()
    )
    has_own = {"AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE"} & set(os.environ)
    if has_own or not exists or importlib.util.find_spec("boto3") is None:
        return None
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider()
    except ValueError:  # the files hold settings only
        return None
    except Exception as error:  # botocore's errors have no common base outside of it
        raise DataError(
            f"can't use the AWS profile ({error}): check ~/.aws and AWS_PROFILE"
        ) from None


# ---- the thread ----------------------------------------------------------------------------------

_lock = threading.Lock()
_owner = 0
"""The process in which the first request was made; 0: none yet."""
_loop: asyncio.AbstractEventLoop | None = None
_ending = False
"""Whether the interpreter is at its end: no more requests."""
_answers: weakref.WeakSet[asyncio.Future[Any]] = weakref.WeakSet()
"""Futures that obstore's threads still refer to, even when they are cancelled."""


def run(request: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The coroutine's result; may be called from any thread.

    RuntimeError in a process that was forked off one that had made requests already: obstore's
    threads do not exist there, and the request would hang for ever.
    """
    if _owner not in (0, os.getpid()):
        raise RuntimeError(
            "a bucket can't be read in a forked process: start workers by 'spawn' or 'forkserver'"
        )

    async def unless_ending() -> T:
        if _ending:
            raise asyncio.CancelledError
        return await request()

    future = asyncio.run_coroutine_threadsafe(unless_ending(), _running())
    try:
        return future.result()
    finally:
        future.cancel()  # of use only where Ctrl-C or a signal ended the wait


async def answered(answer: Awaitable[T]) -> T:
    """What one of obstore's functions answers; for the exit, keeps count of what it works on.

    Functions, not methods: those hand out coroutines, which hide the futures.
    """
    assert isinstance(answer, asyncio.Future)
    _answers.add(answer)
    try:
        result: T = await answer
        return result
    finally:
        del answer  # or the traceback of an error would keep it


def _running() -> asyncio.AbstractEventLoop:
    global _owner, _loop
    with _lock:
        if _loop is None:
            _owner = os.getpid()
            _loop = asyncio.new_event_loop()
            thread = threading.Thread(
                target=_loop.run_forever, name="genus bucket requests", daemon=True
            )
            thread.start()
            atexit.register(_stop, _loop, thread)
        return _loop


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Cancels what is under way.

    A thread of obstore that comes back to a Python that is no more would abort the process, so
    this waits until they have let go of all futures: some milliseconds.
    """
    if _owner != os.getpid():
        return

    async def cancel() -> None:
        global _ending
        _ending = True
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        until = time.monotonic() + EXIT_WAIT
        while _answers and time.monotonic() < until:
            await asyncio.sleep(0.001)
        loop.stop()

    asyncio.run_coroutine_threadsafe(cancel(), loop)
    thread.join(timeout=2 * EXIT_WAIT)
