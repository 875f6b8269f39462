"""Downloads a file with a deadline, retries and a size limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin

from gptkit.errors import NetworkError

TIMEOUT = 10.0  # seconds to connect, and without a byte after that
DEADLINE = 300.0  # seconds that a download may take in all, retries included
SLOWEST = 4_000  # bytes a second, on average, after the first TIMEOUT seconds
ATTEMPTS = (
    3  # where the server is at fault (5xx) or the connection was reset; nothing else gets better so soon
)
LARGEST = 64_000_000  # bytes; who sends more does not send what was asked for


# Downloading


class _Received:
    """What has arrived so far, as a file that pooch writes to."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.abandoned = False

    def write(self, chunk: bytes) -> int:
        if self.abandoned or len(self.data) + len(chunk) > LARGEST:
            raise ValueError("the server sends more than it should")
        self.data += chunk
        return len(chunk)

    def flush(self) -> None:
        pass


def download(url: str, length: int, progress: Callable[[int, int], None], advice: str) -> bytes:
    """What is behind `url`, unverified. `length` is the bytes to expect; `advice` ends the error's message.

    Raises NetworkError.
    """
    deadline = time.monotonic() + DEADLINE
    attempt = 1
    while True:
        received, failure = _try_download(url, length, progress, deadline)
        if failure is None:
            return bytes(received.data)
        if attempt == ATTEMPTS or not _may_pass(failure):
            raise NetworkError(f"cannot download {url}: {_reason(failure)}.\n{advice}") from failure
        time.sleep(0.5 * attempt)
        attempt += 1


def _try_download(
    url: str, length: int, progress: Callable[[int, int], None], deadline: float
) -> tuple[_Received, Exception | None]:
    """Downloads in a thread, so that no name server or slow drip can hold up the caller."""
    received, failures = _Received(), list[Exception]()

    def work() -> None:
        try:
            import pooch

            get = pooch.HTTPDownloader(
                chunk_size=8192, timeout=(TIMEOUT, TIMEOUT), hooks={"response": _stay_encrypted}
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
            if alive and (now > deadline or done < SLOWEST * (now - began - TIMEOUT)):
                return received, TimeoutError(f"too slow, {done} bytes in {now - began:.0f} seconds")
    finally:
        received.abandoned = True
    return received, failures[0] if failures else None


def _stay_encrypted(response: Any, *args: Any, **kwargs: Any) -> None:
    """Refuses a redirect from https to anything else."""
    target = urljoin(response.url, response.headers.get("location", ""))
    if response.is_redirect and response.url.startswith("https:") and not target.startswith("https:"):
        raise ValueError("the server redirects from https to something that is not")


def _may_pass(error: Exception) -> bool:
    """Whether another attempt is worth it: a 5xx, or a connection that was reset."""
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
    kinds: list[tuple[type[Exception], str]] = [  # the first that fits: some are kinds of ConnectionError
        (web.TooManyRedirects, "the server redirects in circles"),
        (web.SSLError, "the server's certificate does not verify"),
        (web.ChunkedEncodingError, "the connection broke off"),
        (web.ContentDecodingError, "the connection broke off"),
        (web.ConnectionError, "the connection broke off" if _may_pass(error) else "no connection"),
        (Exception, (str(error).splitlines() or [type(error).__name__])[0][:200]),
    ]
    return next(reason for kind, reason in kinds if isinstance(error, kind))
