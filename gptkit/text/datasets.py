"""Built-in datasets: a name to a text.

In: the folders in which texts may be. Out: the whole text, exactly as it stands in its file, a leading
byte-order mark aside. What is downloaded is verified before it stands under its name. Texts of one's own are
in texts.py. Knows nothing of tokens, experiments or runs.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urljoin

from gptkit import files
from gptkit.errors import DataError, NetworkError
from gptkit.plugins.dataset import DataFolders, Dataset
from gptkit.text.readers import decode, read_bytes, read_text

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


# The datasets


class ShakespeareDataset(Dataset):
    """Tiny Shakespeare: a file in one of the folders, or else downloaded. Its hash is pinned."""

    summary = "Tiny Shakespeare, 40,000 lines of the plays"
    source = "github.com/karpathy/char-rnn"
    file_name: ClassVar[str] = "tiny_shakespeare.txt"
    url: ClassVar[str] = (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
    )
    sha256: ClassVar[str] = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    length: ClassVar[int] = 1_115_394  # bytes

    def read(self, folders: DataFolders) -> str:
        path = folders.find(self.file_name)
        if path is None:
            path = self._download_to(folders.downloads / self.file_name, folders)
        return decode(self._verified(path), path)

    def is_here(self, folders: DataFolders) -> bool:
        return folders.find(self.file_name) is not None

    def size(self, folders: DataFolders) -> int | None:
        path = folders.find(self.file_name)
        return path.stat().st_size if path else self.length

    def fetch(self, folders: DataFolders, *, repair: bool = False) -> None:
        """Downloads it where it is missing and, with `repair`, where it is damaged."""
        path = folders.find(self.file_name)
        if path is None:
            self._download_to(folders.downloads / self.file_name, folders)
            return
        try:
            self._verified(path)
        except DataError:
            if not repair:
                raise
            # In the same place: a good copy in a later folder would never be found.
            self._download_to(path, folders)

    def _verified(self, path: Path) -> bytes:
        data = read_bytes(path)
        found = files.sha256(data)
        if found != self.sha256:
            raise DataError(
                f"{path} is damaged or something else: its SHA-256 is {found},\n"
                f"expected {self.sha256}.\n"
                "Replace it: gptkit datasets fetch shakespeare --repair"
            )
        return data

    def _download_to(self, target: Path, folders: DataFolders) -> Path:
        """Puts the verified text at `target`, all at once; nothing unverified touches the disk."""
        advice = (
            "Get the file some other way and run 'gptkit datasets add shakespeare FILE', "
            "or train on python-docs, which needs no network."
        )
        data = download(self.url, self.length, folders.progress, advice)
        found = files.sha256(data)
        if found != self.sha256:
            raise DataError(
                f"{self.url} gave something else: its SHA-256 is {found},\n"
                f"expected {self.sha256}. Nothing was kept.\n{advice}"
            )
        with files.disk_errors(f"saving {target}", needed=len(data)):
            files.make_folder(target.parent)
            files.replace_file(target, data)
        return target


class PythonDocsDataset(Dataset):
    """The topics of Python's language reference, which come with every CPython."""

    summary = "Python's language reference; needs no network"
    source = "pydoc_data.topics of this Python"

    def read(self, folders: DataFolders) -> str:
        try:
            from pydoc_data.topics import topics
        except ImportError:
            raise DataError(
                "this Python came without pydoc_data.topics, so there is no python-docs here.\n"
                "Use a Python from python.org or conda, or another dataset: gptkit datasets list"
            ) from None
        # Some topics have two names; a text that stands there twice would be learnt by heart.
        texts = dict.fromkeys(topics[name].strip("\n") for name in sorted(topics))
        return "\n\n".join(texts) + "\n"

    def is_here(self, folders: DataFolders) -> bool:
        try:
            return importlib.util.find_spec("pydoc_data.topics") is not None
        except ImportError:
            return False

    def size(self, folders: DataFolders) -> int | None:
        return len(self.read(folders).encode()) if self.is_here(folders) else None


class _CopyrightedDataset(Dataset):
    """A text that only its owner can put here."""

    source = "your own copy"
    name: ClassVar[str]
    file_name: ClassVar[str]

    def read(self, folders: DataFolders) -> str:
        return read_text(self._path(folders))

    def is_here(self, folders: DataFolders) -> bool:
        return folders.find(self.file_name) is not None

    def size(self, folders: DataFolders) -> int | None:
        path = folders.find(self.file_name)
        return path.stat().st_size if path else None

    def fetch(self, folders: DataFolders, *, repair: bool = False) -> None:
        self._path(folders)

    def _path(self, folders: DataFolders) -> Path:
        path = folders.find(self.file_name)
        if path is None:
            raise DataError(
                f"{self.name} is not here: it is under copyright, so gptkit cannot ship it.\n"
                f"With a text file of your own: gptkit datasets add {self.name} FILE\n"
                f"(looked for {_listed([folder / self.file_name for folder in folders.search])})"
            )
        return path


class HarryPotterDataset(_CopyrightedDataset):
    summary = "the Harry Potter books, from a file of yours"
    name = "harry_potter"
    file_name = "harry_potter.txt"


class AvatarScriptDataset(_CopyrightedDataset):
    summary = "the Avatar script, from a file of yours"
    name = "avatar_script"
    file_name = "avatar_script.txt"


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths)
