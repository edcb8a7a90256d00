"""Files of a bucket (S3, Google Cloud Storage) or web server, read in ranges with retries."""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from genus.data.client import check_url, make_client
from genus.data.files import Span, UnreadableError, checked, too_short
from genus.data.request_thread import answered, run
from genus.errors import ConfigError, DataError

if TYPE_CHECKING:
    from obstore.store import GCSStore, HTTPStore, S3Store

T = TypeVar("T")

IN_FLIGHT = 32
"""Requests of a store at once."""
PART = 8 << 20
"""Bytes of a request at most: larger spans are read in parts, which can be retried alone."""
SMALL = 1 << 20
"""Bytes up to which a request counts as small."""
LARGE_IN_FLIGHT = 8
"""Larger requests of a store at once: more would starve each other on a slow link."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
"""Seconds before the second try, and at most; doubled from try to try."""
DEAD_STALL = 1.0
"""Seconds without a byte that a request is given at most while the whole store fails."""


class Bucket:
    """A folder of a bucket or web server, ``url`` as in s3://bucket/folder.

    What can pass (5xx, 429, connections that fail or stall, answers that are cut off) is tried
    again with growing, random pauses until $GENUS_STORE_RETRY_S seconds (120) after the first
    failure; a request is given up after $GENUS_STORE_TIMEOUT_S seconds (30) without a byte. Where
    nothing at all has succeeded for the retry time, a request has one try only. May be used from
    several threads and in spawned processes, but not in one that was forked after the first
    request.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        check_url(self.url)
        self._retry = _seconds("GENUS_STORE_RETRY_S", 120)
        self._stall = _seconds("GENUS_STORE_TIMEOUT_S", 30)
        self._clients: dict[float, S3Store | GCSStore | HTTPStore] = {}
        # when the first request failed after the last that succeeded; of the request thread alone
        self._failing_since = float("inf")
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._large_slots = asyncio.Semaphore(LARGE_IN_FLIGHT)

    def __repr__(self) -> str:
        return f"Bucket({self.url!r})"

    def __getstate__(self) -> dict[str, str]:
        return {"url": self.url}

    def __setstate__(self, state: Mapping[str, str]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def read(self, name: str, start: int, stop: int) -> bytes:
        return run(lambda: self._span(name, start, stop))

    def read_many(self, spans: Sequence[Span]) -> list[bytes | DataError]:
        async def one(span: Span) -> bytes | DataError:
            try:
                return await self._span(*span)
            except DataError as error:
                return error

        async def all_of_them() -> list[bytes | DataError]:
            return await asyncio.gather(*(one(span) for span in spans))

        return run(all_of_them)

    def read_all(self, name: str) -> bytes:
        import obstore

        async def get() -> bytes | int:
            result = await answered(obstore.get_async(self._client, checked(name, self.url)))
            size = result.meta["size"]
            return bytes(await answered(result.bytes_async())) if size <= PART else size

        async def whole() -> bytes:
            found = await self._persist(name, get)
            return found if isinstance(found, bytes) else await self._span(name, 0, found)

        return run(whole)

    def size(self, name: str) -> int:
        return run(lambda: self._persist(name, partial(self._size, name)))

    def names(self) -> list[str]:
        """DataError for a web server, which can't say."""
        if self.url.startswith("http"):
            raise DataError(f"{self.url} is a web server, which can't list its files: name them")

        import obstore

        async def names() -> list[str]:
            found = await answered(obstore.list_with_delimiter_async(self._client))
            return sorted(entry["path"] for entry in found["objects"])

        return run(lambda: self._persist("", names))

    def write(self, name: str, data: bytes) -> None:
        import obstore

        async def put() -> None:
            await answered(
                obstore.put_async(
                    self._client,
                    checked(name, self.url),
                    data,
                    use_multipart=len(data) > PART and not self.url.startswith("http"),
                    chunk_size=PART,
                    max_concurrency=2,
                )
            )

        run(lambda: self._persist(name, put))

    @property
    def _client(self) -> S3Store | GCSStore | HTTPStore:
        """Made by the first request, in the thread that makes them all; a dead store's is other."""
        stall = min(self._stall, DEAD_STALL) if self._is_dead else self._stall
        if stall not in self._clients:
            # a request that makes progress may last as long as all its tries together
            self._clients[stall] = make_client(self.url, stall, max(self._retry, self._stall))
        return self._clients[stall]

    @property
    def _is_dead(self) -> bool:
        """Whether nothing has succeeded for the retry time."""
        return time.monotonic() - self._failing_since > self._retry

    async def _span(self, name: str, start: int, stop: int) -> bytes:
        if not 0 <= start <= stop:
            raise ValueError(f"no span of bytes: {start} to {stop}")
        if start == stop:
            return b""
        if stop - start <= PART:
            return await self._range(name, start, stop)
        try:
            async with asyncio.TaskGroup() as group:
                parts = [
                    group.create_task(self._range(name, begin, min(begin + PART, stop)))
                    for begin in range(start, stop, PART)
                ]
        except ExceptionGroup as failed:  # the others are cancelled
            raise failed.exceptions[0] from None
        return b"".join(part.result() for part in parts)

    async def _range(self, name: str, start: int, stop: int) -> bytes:
        import obstore

        slots = self._slots if stop - start <= SMALL else self._large_slots

        async def get() -> bytes:
            async with slots:
                data = await answered(
                    obstore.get_range_async(
                        self._client, checked(name, self.url), start=start, end=stop
                    )
                )
            if len(data) == stop - start:
                return bytes(data)
            size = await self._size(name)
            if size < stop:
                raise too_short(f"{self.url}/{name}", size, stop)
            raise _CutError

        try:
            return await self._persist(name, get)
        except _BeyondError:
            size = await self._persist(name, partial(self._size, name))
            raise too_short(f"{self.url}/{name}", size, stop) from None

    async def _size(self, name: str) -> int:
        import obstore

        found = await answered(obstore.head_async(self._client, checked(name, self.url)))
        return int(found["size"])

    async def _persist(self, name: str, act: Callable[[], Awaitable[T]]) -> T:
        """What ``act`` gives, however often it takes; UnreadableError when that is no use.

        The retry time runs from this request's first failure, or from the store's since its last
        success: else all requests to a dead server would wait for it in turn.
        """
        tries, pause, failing_since = 0, FIRST_PAUSE, float("inf")
        while True:
            tries += 1
            try:
                result = await act()
            except DataError:
                raise
            except Exception as error:  # obstore raises builtin errors beside its own
                failure = _explain(error, self.url)
            else:
                self._failing_since = float("inf")
                return result
            now = time.monotonic()
            failing_since = min(failing_since, now)
            if failure.can_pass:  # else the server answers, and of this file only
                self._failing_since = min(self._failing_since, now)
            wait = random.uniform(pause / 2, pause)  # or all workers would come back at once
            pause = min(2 * pause, LONGEST_PAUSE)
            spent = now - min(failing_since, self._failing_since)
            if not failure.can_pass or spent + wait > self._retry:
                place = f"{self.url}/{name}" if name else self.url
                times = f" after {tries} tries, {now - failing_since:.0f} s of failures"
                if tries == 1:
                    times = f" like all else for {spent:.0f} s" if failure.can_pass else ""
                kind = _BeyondError if failure.status == 416 else UnreadableError
                raise kind(f"{place}: {failure.cause}{times}; {failure.remedy}")
            await asyncio.sleep(wait)


class _CutError(Exception):
    """An answer that is shorter than it says."""


class _BeyondError(DataError):
    """Nothing but bytes after the file's end were asked for."""


@dataclass(frozen=True)
class _Failure:
    cause: str
    remedy: str
    can_pass: bool = False
    status: int = 0


_LOGIN = {
    "s3": "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN (or AWS_PROFILE, "
    "which needs 'pip install boto3') and their rights; of a public bucket set "
    "AWS_SKIP_SIGNATURE=true",
    "gs": "check the file that GOOGLE_APPLICATION_CREDENTIALS names and its rights; of a public "
    "bucket set GOOGLE_SKIP_SIGNATURE=true",
}


def _explain(error: Exception, url: str) -> _Failure:
    """What an error of obstore means. Its text has the status, the code of S3 and the cause."""
    text = str(error)
    scheme = url.partition("://")[0]
    login = _LOGIN.get(scheme, "check that the server lets everybody read it")
    match = re.search(r"status code: (\d{3})", text)
    status = int(match[1]) if match else 0
    match = re.search(r"<Code>(\w+)</Code>", text)
    code = match[1] if match else ""
    said = f"{status} {code}".strip()
    can_pass = status in (408, 429) or (status >= 500 and status not in (501, 505))
    can_pass = can_pass or code == "RequestTimeout"
    again = "try again later, or check the server"
    if "//169.254." in text and not can_pass:  # where clouds tell their machines who they are
        return _Failure("there are no credentials", login)
    if status == 404 or isinstance(error, FileNotFoundError):
        if code == "NoSuchBucket":
            return _Failure("there is no such bucket", "check the url and AWS_ENDPOINT_URL")
        return _Failure("it is not there", "check the url, or upload the file again")
    if status in (401, 403):
        return _Failure(f"access denied ({said})", login)
    if "redirect" in text or code in ("AuthorizationHeaderMalformed", "PermanentRedirect"):
        return _Failure("the bucket is in another region", "set AWS_REGION to the bucket's")
    if "Range request not supported" in text:
        return _Failure("its server gives no parts of files", "use one that knows range requests")
    if status:
        return _Failure(f"the server answers {said}", again, can_pass, status)
    network = "check the network and the endpoint"
    if isinstance(error, _CutError):
        return _Failure("the answer was cut off", again, True)
    if "certificate" in text:
        return _Failure("the server's certificate is not trusted", "check the endpoint")
    if "kind: Timeout" in text:
        slow = "check the network, or set GENUS_STORE_TIMEOUT_S higher"
        return _Failure("no answer in time", slow, True)
    if "dns error" in text:
        return _Failure("its host is not known", network, True)
    if "kind: Connect" in text:
        return _Failure("no connection to the server", network, True)
    if "HTTP error" in text:
        return _Failure("the connection broke off", again, True)
    return _Failure(text.partition("\n")[0], "check the url and the server")


def _seconds(variable: str, default: float) -> float:
    text = os.environ.get(variable) or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{variable}={text}: expected a number of seconds above 0")
    return seconds
