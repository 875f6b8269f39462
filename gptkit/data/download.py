"""Downloads one file into memory, with a deadline, a minimum rate, retries and a size limit.

Input: a URL. Output: its bytes, unverified, or a NetworkError with the reason. Writes nothing to the
disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin

from gptkit.errors import NetworkError

TIMEOUT = 10.0  # seconds to connect, and between two chunks
DEADLINE = 300.0  # seconds in all, retries included
MIN_RATE = 4_000  # bytes per second, on average, after the first TIMEOUT seconds
ATTEMPTS = 3  # after a server error (5xx) or a reset connection; other failures are not retried
RETRY_DELAY = 0.5  # seconds before the second attempt; twice that before the third
MAX_BYTES = 64_000_000  # a server that sends more does not send what was asked for


class _Received:
    """The bytes so far, as a file that pooch writes to."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.abandoned = False

    def write(self, chunk: bytes) -> int:
        if self.abandoned or len(self.data) + len(chunk) > MAX_BYTES:
            raise ValueError("the server sends more than it should")
        self.data += chunk
        return len(chunk)

    def flush(self) -> None:
        pass


def download(url: str, length: int, progress: Callable[[int, int], None], advice: str) -> bytes:
    """The content of `url`, unverified.

    `length` is the expected number of bytes, for `progress`. Raises NetworkError, whose message ends with
    `advice`.
    """
    deadline = time.monotonic() + DEADLINE
    attempt = 1
    while True:
        received, failure = _try_download(url, length, progress, deadline)
        if failure is None:
            return bytes(received.data)
        if attempt == ATTEMPTS or not _is_temporary(failure):
            raise NetworkError(f"cannot download {url}: {_reason(failure)}.\n{advice}") from failure
        time.sleep(RETRY_DELAY * attempt)
        attempt += 1


def _try_download(
    url: str, length: int, progress: Callable[[int, int], None], deadline: float
) -> tuple[_Received, Exception | None]:
    """Downloads in a thread, so that neither a name server nor a slow connection blocks the caller."""
    received, failures = _Received(), list[Exception]()

    def work() -> None:
        try:
            import pooch

            get = pooch.HTTPDownloader(
                chunk_size=8192, timeout=(TIMEOUT, TIMEOUT), hooks={"response": _refuse_http}
            )
            get(url, received, None)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work, name="download", daemon=True)
    began = time.monotonic()
    thread.start()
    try:
        alive = True
        while alive:
            thread.join(0.1)
            alive, done, now = thread.is_alive(), len(received.data), time.monotonic()
            progress(done, max(length, done))
            if alive and (now > deadline or done < MIN_RATE * (now - began - TIMEOUT)):
                return received, TimeoutError(f"too slow, {done} bytes in {now - began:.0f} seconds")
    finally:
        received.abandoned = True
    return received, failures[0] if failures else None


def _refuse_http(response: Any, *args: Any, **kwargs: Any) -> None:
    """Refuses a redirect from https to another protocol."""
    target = urljoin(response.url, response.headers.get("location", ""))
    if response.is_redirect and response.url.startswith("https:") and not target.startswith("https:"):
        raise ValueError("the server redirects from https to another protocol")


def _is_temporary(error: Exception) -> bool:
    """Whether another attempt may succeed: after a 5xx, or a connection that was reset."""
    response = getattr(error, "response", None)
    if response is not None:
        return bool(response.status_code >= 500)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionResetError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _reason(error: Exception) -> str:
    """Why a download failed, in a few words."""
    from requests import exceptions as web

    if isinstance(error, web.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code}"
    if "Read timed out" in str(error) or isinstance(error, web.Timeout):
        return f"no answer within {TIMEOUT:.0f} seconds"
    kinds: list[tuple[type[Exception], str]] = [  # the first match: some are subclasses of ConnectionError
        (web.TooManyRedirects, "the server redirects in circles"),
        (web.SSLError, "the server's certificate does not verify"),
        (web.ChunkedEncodingError, "the connection was lost"),
        (web.ContentDecodingError, "the connection was lost"),
        (web.ConnectionError, "the connection was lost" if _is_temporary(error) else "no connection"),
        (Exception, (str(error).splitlines() or [type(error).__name__])[0][:200]),
    ]
    return next(reason for kind, reason in kinds if isinstance(error, kind))
