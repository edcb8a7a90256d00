"""The thread that all requests of a process to buckets go through.

Requests are made by an event loop in a thread of its own. So whoever asks waits in Python, where
signals and Ctrl-C reach it, and at the interpreter's end open requests are cancelled, not awaited.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent import futures
from typing import Any, TypeVar

T = TypeVar("T")

WAIT = 1.0
"""Seconds of a wait without a look at signals: one that comes just before it does not end it."""
EXIT_WAIT = 2.0
"""Seconds that open requests may hold the interpreter's end, at most."""

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
        while True:
            futures.wait([future], WAIT)
            if future.done():
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
