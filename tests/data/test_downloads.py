"""Servers that violate HTTP: raw bytes over a plain socket on this machine.

`test_datasets.py` has those that misbehave in good HTTP.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gptkit.data import download as datasets
from gptkit.data.datasets.shakespeare import ShakespeareDataset
from gptkit.errors import DataError, GptkitError, NetworkError
from gptkit.plugins import DataFolders

BODY = b"Before we proceed any further, hear me speak.\n" * 400
OK = b"HTTP/1.1 200 OK\r\n"

Answer = Callable[[socket.socket, threading.Event], None]


class SmallShakespeare(ShakespeareDataset):
    sha256 = hashlib.sha256(BODY).hexdigest()
    length = len(BODY)


def sent(data: bytes) -> Answer:
    """Sends it and closes the connection."""
    return lambda client, closing: client.sendall(data)


def with_length(length: int, body: bytes, more: bytes = b"") -> bytes:
    return OK + more + f"Content-Length: {length}\r\n\r\n".encode() + body


def reset_midway(client: socket.socket, closing: threading.Event) -> None:
    client.sendall(with_length(len(BODY), BODY[:1000]))
    time.sleep(0.02)
    # Closing with a linger of 0 sends a reset instead of an end
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def headers_without_end(client: socket.socket, closing: threading.Event) -> None:
    client.sendall(OK)
    while not closing.wait(0.02):
        client.sendall(b"X-More: x\r\n")


def dripping_status(client: socket.socket, closing: threading.Event) -> None:
    for byte in OK * 100:
        if closing.wait(0.02):
            return
        client.sendall(bytes((byte,)))


def steady(client: socket.socket, closing: threading.Event) -> None:
    """Faster than the minimum rate, without end."""
    client.sendall(OK + b"\r\n")
    while not closing.wait(0.01):
        client.sendall(b"x" * 2000)


def stalling_midway(client: socket.socket, closing: threading.Event) -> None:
    client.sendall(with_length(len(BODY), BODY[:1000]))
    closing.wait(20)


BOMB = gzip.compress(bytes(80_000_000), 1)
GZIP = b"Content-Encoding: gzip\r\n"

MISBEHAVIOUR: dict[str, tuple[Answer, type[GptkitError]]] = {
    "a length too small": (sent(with_length(100, BODY)), DataError),
    "a length too large": (sent(with_length(len(BODY) + 1, BODY)), NetworkError),
    "a negative length": (sent(with_length(-5, BODY[:-1])), GptkitError),
    "a length that is no number": (sent(OK + b"Content-Length: many\r\n\r\n" + BODY[:-1]), GptkitError),
    "two lengths": (sent(OK + b"Content-Length: 5\r\nContent-Length: 9\r\n\r\n" + BODY), GptkitError),
    "no body": (sent(with_length(0, b"")), DataError),
    "no content": (sent(b"HTTP/1.1 204 No Content\r\n\r\n"), DataError),
    "a part": (sent(b"HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\n\r\n" + BODY[:5]), DataError),
    "nothing at all": (sent(b""), NetworkError),
    "no HTTP": (sent(b"220 mail.example.org ESMTP\r\n"), NetworkError),
    "a header line of a megabyte": (sent(OK + b"X: " + b"x" * 1_000_000 + b"\r\n\r\n"), NetworkError),
    "headers without end": (headers_without_end, NetworkError),
    "a status line byte by byte": (dripping_status, NetworkError),
    "a reset midway": (reset_midway, NetworkError),
    "a stall midway": (stalling_midway, NetworkError),
    "steady and never done": (steady, NetworkError),
    "chunks that break off": (sent(OK + b"Transfer-Encoding: chunked\r\n\r\n50\r\nabc"), NetworkError),
    "chunks that are none": (sent(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc"), NetworkError),
    "no gzip": (sent(with_length(len(BODY), BODY, GZIP)), NetworkError),
    "a gzip bomb": (sent(with_length(len(BOMB), BOMB, GZIP)), NetworkError),
    "a redirect to a file": (
        sent(b"HTTP/1.1 302 Found\r\nLocation: file:///etc/hostname\r\nContent-Length: 0\r\n\r\n"),
        NetworkError,
    ),
    "a redirect to nowhere": (sent(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"), GptkitError),
    "a redirect to an invalid address": (
        sent(b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n"),
        NetworkError,
    ),
}


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """Starts a server that reads a request and then calls `answer`; returns its address."""
    closing = threading.Event()
    listening: list[socket.socket] = []

    def start(answer: Answer) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        listening.append(server)

        def work() -> None:
            with suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client, suppress(OSError):
                        client.recv(65536)
                        answer(client, closing)

        threading.Thread(target=work, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/"

    yield start
    closing.set()
    for server in listening:
        server.close()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> SmallShakespeare:
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(variable, "127.0.0.1")
    monkeypatch.setattr(datasets, "TIMEOUT", 0.4)
    monkeypatch.setattr(datasets, "DEADLINE", 0.8)
    monkeypatch.setattr(datasets, "RETRY_DELAY", 0.01)
    return SmallShakespeare(SmallShakespeare.Options())


@pytest.mark.parametrize("how", MISBEHAVIOUR)
def test_whatever_a_server_does_the_answer_is_short_soon_and_nothing_is_kept(
    how: str,
    small: SmallShakespeare,
    serve: Callable[[Answer], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer, kind = MISBEHAVIOUR[how]
    monkeypatch.setattr(small, "url", serve(answer), raising=False)
    began = time.monotonic()
    with pytest.raises(kind) as caught:
        small.fetch(DataFolders((tmp_path / "data",), tmp_path / "data"))
    assert time.monotonic() - began < 6
    assert caught.value.exit_code in (4, 10)
    assert len(str(caught.value).splitlines()) <= 3
    assert len(str(caught.value)) < 800
    assert not os.path.lexists(tmp_path / "data") or os.listdir(tmp_path / "data") == []


def test_the_plain_socket_can_behave(
    small: SmallShakespeare, serve: Callable[[Answer], str], tmp_path: Path
) -> None:
    small.url = serve(sent(with_length(len(BODY), BODY)))  # type: ignore[misc]
    small.fetch(DataFolders((tmp_path,), tmp_path))
    assert (tmp_path / "tiny_shakespeare.txt").read_bytes() == BODY
