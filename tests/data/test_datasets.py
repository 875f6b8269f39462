"""Built-in datasets: reading, finding, downloading from a local server. No network."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from gptkit import files
from gptkit.data import download as datasets
from gptkit.data.datasets.copyrighted import AvatarScriptDataset, HarryPotterDataset
from gptkit.data.datasets.python_docs import PythonDocsDataset
from gptkit.data.datasets.shakespeare import ShakespeareDataset
from gptkit.errors import DataError, DiskError, NetworkError
from gptkit.plugins import DataFolders

BODY = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 400


class SmallShakespeare(ShakespeareDataset):
    """Tiny Shakespeare with another text, from the server of the test."""

    sha256: ClassVar[str] = hashlib.sha256(BODY).hexdigest()
    length: ClassVar[int] = len(BODY)

    def __init__(self, url: str) -> None:
        super().__init__(self.Options())
        self.url = url


@dataclass
class Server:
    """A web server whose answer depends on the path, and which counts requests."""

    address: str
    requests: list[str] = field(default_factory=list)
    failures_left: int = 0
    closing: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(variable, "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append(self.path)
            answer = getattr(self, self.path.strip("/").replace("-", "_"))
            answer()

        def log_message(self, *args: object) -> None:
            pass

        def _send(
            self, status: int, body: bytes, length: int | None = None, kind: str = "text/plain"
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            if length != 0:  # 0: leave the length out
                self.send_header("Content-Length", str(length or len(body)))
            self.end_headers()
            self.wfile.write(body)

        def good(self) -> None:
            self._send(200, BODY)

        def good_without_length(self) -> None:
            self._send(200, BODY, length=0)

        def other_text(self) -> None:
            self._send(200, BODY.replace(b"speak", b"sneak"))

        def html(self) -> None:
            self._send(200, b"<html>Please log in to this network</html>", kind="text/html")

        def not_found(self) -> None:
            self._send(404, b"404: Not Found")

        def cut(self) -> None:
            self._send(200, BODY[:1000], length=len(BODY))

        def cut_without_length(self) -> None:
            self._send(200, BODY[:1000], length=0)

        def busy(self) -> None:
            state.failures_left -= 1
            self._send(*((503, b"busy") if state.failures_left >= 0 else (200, BODY)))

        def reset(self) -> None:
            state.failures_left -= 1
            if state.failures_left >= 0:
                self.connection.close()  # before any answer: the client sees a reset
            else:
                self._send(200, BODY)

        def loop(self) -> None:
            self.send_response(302)
            self.send_header("Location", "/loop")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def stall(self) -> None:
            state.closing.wait(20)

        def drip(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            while not state.closing.wait(0.05):
                self.wfile.write(b"x")

        def endless(self) -> None:
            self.send_response(200)
            self.end_headers()
            while not state.closing.is_set():
                self.wfile.write(b"x" * 100_000)

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            pass  # clients that hang up are part of the tests

    web = Quiet(("127.0.0.1", 0), Handler)
    state = Server(f"http://127.0.0.1:{web.server_address[1]}")
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield state
    state.closing.set()
    web.shutdown()
    web.server_close()


@pytest.fixture
def small(server: Server, monkeypatch: pytest.MonkeyPatch) -> SmallShakespeare:
    monkeypatch.setattr(datasets.time, "sleep", lambda seconds: None)  # between attempts
    return SmallShakespeare(f"{server.address}/good")


@pytest.fixture
def folders(tmp_path: Path) -> DataFolders:
    return DataFolders(search=(tmp_path / "data",), downloads=tmp_path / "data")


def everything_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.exists() else []


# Downloading


def test_a_download_is_verified_and_stored_under_its_name(
    small: SmallShakespeare, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[int, int]] = []
    data = tmp_path / "data"
    folders = DataFolders((data,), data, progress=lambda done, total: seen.append((done, total)))
    assert not small.is_here(folders)
    assert small.read(folders) == BODY.decode()
    assert everything_in(data) == ["tiny_shakespeare.txt"]
    assert (data / "tiny_shakespeare.txt").read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert small.is_here(folders)
    assert capfd.readouterr() == ("", ""), "pooch's log must not reach the user"


def test_an_existing_file_is_not_downloaded_again(
    small: SmallShakespeare, server: Server, folders: DataFolders
) -> None:
    small.fetch(folders)
    small.fetch(folders, repair=True)
    small.read(folders)
    assert server.requests == ["/good"]


def test_a_server_may_omit_the_length(small: SmallShakespeare, server: Server, folders: DataFolders) -> None:
    small.url = f"{server.address}/good-without-length"
    assert small.read(folders) == BODY.decode()


@pytest.mark.parametrize("path", ["other-text", "html", "cut-without-length"])
def test_a_download_with_another_hash_is_a_data_error(
    small: SmallShakespeare, server: Server, folders: DataFolders, path: str
) -> None:
    small.url = f"{server.address}/{path}"
    with pytest.raises(DataError) as caught:
        small.read(folders)
    assert SmallShakespeare.sha256 in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
    assert everything_in(folders.downloads) == []
    assert server.requests == [f"/{path}"], "a wrong hash is not retried"


@pytest.mark.parametrize(
    "case",
    [
        ("not-found", "the server answered 404", 1),
        ("cut", "the connection was lost", 1),
        ("loop", "redirects in circles", None),
        ("busy", "the server answered 503", datasets.ATTEMPTS),
        ("reset", "the connection was lost", datasets.ATTEMPTS),
    ],
)
def test_a_download_that_fails_is_a_network_error(
    small: SmallShakespeare, server: Server, folders: DataFolders, case: tuple[str, str, int | None]
) -> None:
    path, words, requests = case
    server.failures_left = 1000
    small.url = f"{server.address}/{path}"
    with pytest.raises(NetworkError, match=words) as caught:
        small.fetch(folders)
    assert "gptkit datasets add shakespeare FILE" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
    assert everything_in(folders.downloads) == []
    assert requests is None or len(server.requests) == requests


@pytest.mark.parametrize("path", ["busy", "reset"])
def test_a_5xx_and_a_reset_are_tried_again(
    small: SmallShakespeare, server: Server, folders: DataFolders, path: str
) -> None:
    server.failures_left = 2
    small.url = f"{server.address}/{path}"
    assert small.read(folders) == BODY.decode()
    assert len(server.requests) == 3


@pytest.mark.parametrize("path", ["stall", "drip"])
def test_a_stall_and_a_slow_drip_end_soon(
    small: SmallShakespeare, server: Server, folders: DataFolders, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(datasets, "TIMEOUT", 0.4)
    small.url = f"{server.address}/{path}"
    began = datasets.time.monotonic()
    with pytest.raises(NetworkError, match=r"too slow|no answer"):
        small.fetch(folders)
    assert datasets.time.monotonic() - began < 5
    assert everything_in(folders.downloads) == []


def test_a_server_that_sends_without_end_is_stopped(
    small: SmallShakespeare, server: Server, folders: DataFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "MAX_BYTES", 1_000_000)
    small.url = f"{server.address}/endless"
    with pytest.raises(NetworkError, match="more than it should"):
        small.fetch(folders)


def test_a_refused_connection_is_a_network_error(small: SmallShakespeare, folders: DataFolders) -> None:
    small.url = "http://127.0.0.1:9/"
    with pytest.raises(NetworkError, match="no connection"):
        small.fetch(folders)


def test_https_is_not_left_by_a_redirect() -> None:
    requests = pytest.importorskip("requests")
    assert ShakespeareDataset.url.startswith("https://")
    response = requests.Response()
    response.status_code, response.url = 302, "https://example.org/a"
    response.headers["location"] = "http://example.org/a"
    with pytest.raises(ValueError, match="redirects from https"):
        datasets._refuse_http(response)
    response.headers["location"] = "/b"
    datasets._refuse_http(response)


def test_a_full_disk_leaves_nothing_behind(
    small: SmallShakespeare, folders: DataFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk(files.Disk):
        def fsync(self, file: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "disk", FullDisk())
    with pytest.raises(DiskError, match="disk full"):
        small.fetch(folders)
    assert everything_in(folders.downloads) == []


# Damaged files


def test_a_damaged_file_is_named_and_repaired_where_it_is(small: SmallShakespeare, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    folders = DataFolders(search=(first, second), downloads=second)
    first.mkdir()
    damaged = first / "tiny_shakespeare.txt"
    damaged.write_bytes(b"damaged")
    for attempt in (lambda: small.read(folders), lambda: small.fetch(folders)):
        with pytest.raises(DataError) as caught:
            attempt()
        message = str(caught.value)
        assert "gptkit datasets fetch shakespeare --repair" in message
        assert SmallShakespeare.sha256 in message
        assert hashlib.sha256(b"damaged").hexdigest() in message
        assert damaged.read_bytes() == b"damaged"
    small.fetch(folders, repair=True)
    assert damaged.read_bytes() == BODY
    assert not second.exists()
    assert small.read(folders) == BODY.decode()


def test_a_link_is_replaced_and_not_written_through(small: SmallShakespeare, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    elsewhere = tmp_path / "precious.txt"
    elsewhere.write_bytes(b"precious")
    (data / "tiny_shakespeare.txt").symlink_to(elsewhere)
    small.fetch(DataFolders((data,), data), repair=True)
    assert elsewhere.read_bytes() == b"precious"
    assert not (data / "tiny_shakespeare.txt").is_symlink()


def test_tiny_shakespeare_has_the_pinned_hash(tmp_path: Path) -> None:
    folder = Path(os.environ.get("GPTKIT_DATA_DIR") or "data")
    if not (folder / "tiny_shakespeare.txt").is_file():
        pytest.skip("needs tiny_shakespeare.txt in GPTKIT_DATA_DIR or data/; tests download nothing")
    text = ShakespeareDataset(ShakespeareDataset.Options()).read(DataFolders((folder,), tmp_path))
    assert (len(text), len(set(text))) == (1_115_394, 65)
    assert text.startswith("First Citizen:\nBefore we proceed any further, hear me speak.")


# The other built-in ones


def test_python_docs_are_the_same_in_every_process(folders: DataFolders) -> None:
    dataset = PythonDocsDataset(PythonDocsDataset.Options())
    text = dataset.read(folders)
    assert dataset.is_here(folders)
    assert dataset.size(folders) == len(text.encode()) > 300_000
    assert text.startswith('The "assert" statement\n')
    script = """if True:
        import hashlib
        from gptkit.plugins import DataFolders
        from gptkit.data.datasets.python_docs import PythonDocsDataset as Docs
        print(hashlib.sha256(Docs(Docs.Options()).read(DataFolders()).encode()).hexdigest())
    """
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True
        )
        assert run.stdout.strip() == hashlib.sha256(text.encode()).hexdigest()


def test_python_docs_missing_from_a_python_is_a_data_error(
    folders: DataFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match=r"pydoc_data\.topics"):
        PythonDocsDataset(PythonDocsDataset.Options()).read(folders)


@pytest.mark.parametrize("kind", [HarryPotterDataset, AvatarScriptDataset])
def test_a_copyrighted_text_has_to_be_supplied_by_the_user(
    folders: DataFolders, kind: type[HarryPotterDataset] | type[AvatarScriptDataset]
) -> None:
    dataset = kind(kind.Options())
    assert not dataset.is_here(folders)
    assert dataset.size(folders) is None
    for attempt in (lambda: dataset.read(folders), lambda: dataset.fetch(folders)):
        with pytest.raises(DataError) as caught:
            attempt()
        assert "under copyright" in str(caught.value)
        assert f"gptkit datasets add {kind.name} FILE" in str(caught.value)
        assert str(folders.search[0] / kind.file_name) in str(caught.value)
    folders.search[0].mkdir()
    (folders.search[0] / kind.file_name).write_text("Once")
    assert dataset.is_here(folders)
    dataset.fetch(folders)
    assert (dataset.read(folders), dataset.size(folders)) == ("Once", 4)
