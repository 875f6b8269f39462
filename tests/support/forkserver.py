"""Python processes that have torch imported when they begin: forks of a server.

A new interpreter needs two seconds of processor time to import torch and gptkit before it does what a test is
about; a fork needs some milliseconds. `ForkServer` imports them once, and its `python` takes the place of
`sys.executable` in a command line:

    subprocess.run([*server.python, "-m", "gptkit", "runs"])

The command is a small client: it passes its arguments, environment, working folder and streams to the
server, forwards signals to the fork, and ends as the fork ends. What depends on how an interpreter starts
needs a real one: the modules that it imports, PYTHONPATH and PYTHONHASHSEED, variables that libraries read
when they are loaded, closed streams.

This file knows nothing of gptkit, and any Python can run it alone: that of another environment too.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:  # a client imports as little as possible
    from collections.abc import Sequence
    from pathlib import Path

FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP")
STREAMS = (0, 1, 2)
LENGTH = 8  # bytes of the length before a request


class ForkServer:
    """A server of the Python `executable`, which has imported `modules`; `started` are settings of Popen."""

    def __init__(
        self, modules: Sequence[str], executable: str | Path = sys.executable, **started: Any
    ) -> None:
        import subprocess
        import tempfile

        self._folder = tempfile.TemporaryDirectory()  # the path of a socket has to be short
        address = os.path.join(self._folder.name, "socket")
        self.python = [sys.executable, "-I", "-S", __file__, address]
        self._process = subprocess.Popen(
            [executable, "-P", __file__, address, "serve", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **started,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError("the server of forks does not start")

    def close(self) -> None:
        """Ends the server: it serves until its standard input is closed."""
        self._process.communicate()
        self._folder.cleanup()


# The server


def serve(address: str, modules: Sequence[str]) -> None:
    import gc
    import importlib
    import select

    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # so that no fork has to visit, and to copy, the objects of the modules
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(16)
    ended, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # so that it is written to `wake`
    clients: dict[socket.socket, int] = {}
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([0, listener, ended, *clients], [], [])
        if 0 in ready:
            return
        if ended in ready:
            os.read(ended, 4096)
            _report_the_ended(clients)
        for client in [client for client in clients if client in ready]:  # it was killed
            os.kill(clients[client], signal.SIGKILL)
        if listener in ready:
            client, _ = listener.accept()
            request, streams = _receive(client)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for opened in (listener, client, *clients):
                    opened.close()
                for pipe in (ended, wake):
                    os.close(pipe)
                _be_python(request, streams)
            for stream in streams:
                os.close(stream)
            clients[client] = pid
            client.sendall(pid.to_bytes(4))


def _report_the_ended(clients: dict[socket.socket, int]) -> None:
    for client, pid in list(clients.items()):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            del clients[client]
            with client:
                try:
                    client.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, signed=True))
                except OSError:  # it was killed
                    continue


def _receive(client: socket.socket) -> tuple[list[str], list[int]]:
    """The fields of a request, and the descriptors of the client's streams."""
    data, streams, _, _ = socket.recv_fds(client, 1 << 16, len(STREAMS))
    while len(data) < LENGTH or len(data) < LENGTH + int.from_bytes(data[:LENGTH]):
        data += client.recv(1 << 16)
    return os.fsdecode(data[LENGTH:]).split("\0"), streams


def _be_python(request: list[str], streams: list[int]) -> NoReturn:
    """Does what `python` does with these arguments."""
    import atexit
    import importlib
    import runpy
    import threading
    import traceback

    folder, count, *fields = request
    arguments, environment = fields[: int(count)], fields[int(count) :]
    for stream, target in zip(streams, STREAMS, strict=True):
        os.dup2(stream, target)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variable.split("=", 1) for variable in environment)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    text: dict[str, Any] = {"encoding": "utf-8", "closefd": False}
    sys.stdin = sys.__stdin__ = open(0, **text)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", **text)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", **text)  # noqa: SIM115
    importlib.invalidate_caches()
    code: object = None
    try:
        kind, what, *rest = arguments
        if kind == "-m":
            sys.argv = [what, *rest]
            sys.path.insert(0, folder)
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv = ["-c", *rest]
            sys.path.insert(0, "")
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        else:
            raise ValueError(f"python {kind} is not served")
    except SystemExit as leaving:
        code = leaving.code
    except KeyboardInterrupt:
        traceback.print_exc()
        _end_by(signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        try:
            file.flush()
        except (OSError, ValueError):
            code = code or 120
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _end_by(number: int) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise AssertionError


# The client


def ask(address: str, arguments: Sequence[str]) -> NoReturn:
    """Has the server run `python ARGUMENTS`, and ends as that ends."""
    forwarded = [getattr(signal, name) for name in FORWARDED]
    signal.pthread_sigmask(signal.SIG_BLOCK, forwarded)
    variables = [f"{key}={value}" for key, value in os.environ.items()]
    fields = [os.getcwd(), str(len(arguments)), *arguments, *variables]
    request = os.fsencode("\0".join(fields))
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [len(request).to_bytes(LENGTH)], STREAMS)
        server.sendall(request)
        pid = int.from_bytes(server.recv(4))
        for number in forwarded:
            signal.signal(number, lambda number, _: os.kill(pid, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
        code = int.from_bytes(server.recv(4), signed=True)
    if code < 0:
        _end_by(-code)
    os._exit(code)


if __name__ == "__main__":
    _, address, *arguments = sys.argv
    if arguments[0] == "serve":
        serve(address, arguments[1:])
    else:
        ask(address, arguments)
