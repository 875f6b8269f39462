"""The processes that train one run together, and everything that they exchange, on torch.distributed.

Input: the environment that torchrun sets (RANK, WORLD_SIZE, LOCAL_RANK, …). Output: a `Processes`, whose
operations do nothing where there is one process. What is exchanged is a tensor or JSON, never a pickle.
Rank 0 has the run's folder, the display and the evaluation; the others compute the same steps on other rows
of the same batches. Knows nothing of runs, models or experiments' files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor

from gptkit.backend import usable_threads
from gptkit.errors import LostProcessError, PluginError, UsageError
from gptkit.experiment.schema import TrainingSettings

T = TypeVar("T")


@dataclass(frozen=True)
class RankBatches:
    """The part of a step's sequences that one process computes: `passes` batches of `batch_size`."""

    batch_size: int  # sequences per forward pass
    passes: int  # forward passes per step

    def numbers(self, step: int, rank: int, count: int) -> range:
        """The numbers of the batches, from 0, that a process of `count` computes in `step`, from 1."""
        first = ((step - 1) * count + rank) * self.passes
        return range(first, first + self.passes)


def rank_batches(training: TrainingSettings, count: int) -> RankBatches:
    """Deals the sequences of a step to `count` processes, in as few forward passes as batch_size allows.

    Raises UsageError if they cannot be dealt evenly.
    """
    sequences = training.batch_size * training.gradient_accumulation_steps
    if sequences % count:
        fewer = next(number for number in range(count, 0, -1) if sequences % number == 0)
        more = next((number for number in range(count, sequences + 1) if sequences % number == 0), None)
        numbers = f"{fewer} or {more}" if more else str(fewer)
        size = -(-training.batch_size // count) * count
        raise UsageError(
            f"{count} processes cannot share the {sequences} sequences of a step evenly (batch_size "
            f"{training.batch_size} × gradient_accumulation_steps {training.gradient_accumulation_steps}).\n"
            f"Use {numbers} processes, or training.batch_size = {size}.",
            field="training.batch_size",
        )
    own = sequences // count
    passes = next(n for n in range(-(-own // training.batch_size), own + 1) if own % n == 0)
    return RankBatches(own // passes, passes)


class Processes:
    """One process, which exchanges nothing: what every method returns is its own."""

    rank = 0
    count = 1
    here = 1  # processes on this machine

    @property
    def first(self) -> bool:
        """Whether this is the process with the run's folder and the display."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> None:
        """Adds up a tensor over the processes, in place; afterwards all have the same bits."""

    def largest(self, number: int) -> int:
        return number

    def from_first(self, value: T) -> T:
        """The value of rank 0, which is plain JSON; what the others pass does not matter."""
        return value

    def wait(self) -> None:
        """Until all processes are here."""

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The others enter when rank 0 has left, so that what it downloads and stores is there for them."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def require_same(self, facts: Callable[[], Mapping[str, object]], remedy: str) -> None:
        """Raises PluginError, naming a rank, if a fact is not the same for all processes."""

    def leave(self) -> None:
        """Nothing more is exchanged, since this process fails."""


ONE_PROCESS = Processes()


class Group(Processes):
    """Several processes, joined by torch.distributed."""

    def __init__(self, timeout: float) -> None:
        self.rank = int(os.environ["RANK"])
        self.count = int(os.environ["WORLD_SIZE"])
        self.here = int(os.environ.get("LOCAL_WORLD_SIZE", self.count))
        self._timeout = timeout
        self._left = False

    def sum(self, tensor: Tensor) -> None:
        with self._exchanging():
            torch.distributed.all_reduce(tensor)

    def largest(self, number: int) -> int:
        tensor = torch.tensor(number)
        with self._exchanging():
            torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return int(tensor)

    def from_first(self, value: T) -> T:
        data = json.dumps(value).encode() if self.first else b""
        size = torch.tensor(len(data))
        with self._exchanging():
            torch.distributed.broadcast(size, 0)
            tensor = _bytes_tensor(data, int(size))
            torch.distributed.broadcast(tensor, 0)
        received: T = json.loads(bytes(tensor.numpy()))
        return received

    def wait(self) -> None:
        self.largest(0)

    def require_same(self, facts: Callable[[], Mapping[str, object]], remedy: str) -> None:
        if self._left:
            return
        first, *others = self._gather(json.dumps(facts(), sort_keys=True))
        for rank, text in enumerate(others, 1):
            if text == first:
                continue
            theirs, own = json.loads(text), json.loads(first)
            key = next(key for key in {**own, **theirs} if own.get(key) != theirs.get(key))
            raise PluginError(
                f"rank {rank} differs from rank 0: {key} is {theirs.get(key)} there, {own.get(key)} on rank "
                f"0.\n{remedy}"
            )

    def leave(self) -> None:
        self._left = True

    def _gather(self, text: str) -> list[str]:
        """The texts of all processes, by rank."""
        data = text.encode()
        size = self.largest(len(data))
        # Padded with spaces, which JSON ignores
        own = _bytes_tensor(data.ljust(size), size)
        gathered = [torch.empty_like(own) for _ in range(self.count)]
        with self._exchanging():
            torch.distributed.all_gather(gathered, own)
        return [bytes(tensor.numpy()).decode().rstrip() for tensor in gathered]

    @contextmanager
    def _exchanging(self) -> Iterator[None]:
        if self._left:
            raise LostProcessError("this process no longer takes part.")
        try:
            yield
        except RuntimeError as error:  # DistError, or gloo's own
            self._left = True
            if "timed out" in str(error).lower() or "timeout" in str(error).lower():
                raise LostProcessError(
                    f"another process did not answer for {self._timeout:g} seconds (distributed.timeout).",
                    ended=False,
                ) from error
            raise LostProcessError("another process ended.") from error


def launched() -> bool:
    """Whether torchrun, or `gptkit train --processes`, started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1") and "RANK" in os.environ


def is_first() -> bool:
    return not launched() or os.environ["RANK"] == "0"


@contextmanager
def join(timeout: float) -> Iterator[Processes]:
    """The processes of this training; `timeout`: seconds to wait for each other.

    Raises LostProcessError if not all of them come. Yields `ONE_PROCESS` where this is not one of several.
    """
    if not launched():
        yield ONE_PROCESS
        return
    import torch.distributed as torch_distributed

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    backend = "gloo"
    if torch.cuda.is_available() and torch_distributed.is_nccl_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        torch_distributed.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:
        raise LostProcessError(
            f"could not reach the other processes at "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} within {timeout:g} seconds.",
            ended=False,
        ) from error
    yield Group(timeout)
    torch_distributed.destroy_process_group()  # after a failure the end of the process does it


def require_device(device: str, processes: Processes) -> None:
    """Raises UsageError if the device cannot serve several processes, or there are too few of it."""
    if processes.count == 1 or device == "cpu":
        return
    if device != "cuda":
        raise UsageError(
            f"several processes need CPUs or CUDA, and the backend is {device}; set training.backend = "
            '"cpu".',
            field="training.backend",
        )
    gpus = torch.cuda.device_count()
    if processes.here > gpus:
        raise UsageError(
            f"{processes.here} processes on this machine need as many GPUs, and there "
            f"{'is 1' if gpus == 1 else f'are {gpus}'}: --processes {gpus}, or --backend cpu.",
            field="training.backend",
        )


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of its bytes."""
    flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def _bytes_tensor(data: bytes, size: int) -> Tensor:
    tensor = torch.zeros(size, dtype=torch.uint8)
    if data:
        tensor.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    return tensor


# The launcher


def start_processes(command: Sequence[str], count: int, *, timeout: float, log_folder: str) -> dict[int, int]:
    """Runs `command` as `count` processes on this machine, with torchrun's launcher, until all have ended.

    Where one fails, or `stop_processes` is called, the others receive SIGTERM, or the signal, and are killed
    after `timeout` seconds. Returns the exit codes of those that failed, by rank; negative: a signal's.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the caller reports what failed
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=log_folder),
        signals_to_handle="SIGQUIT",  # the caller's handlers call stop_processes for the others
        shutdown_timeout=max(1, math.ceil(timeout)),
    )
    os.environ["OMP_NUM_THREADS"] = str(max(1, usable_threads() // count))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as error:
        return {rank: failure.exitcode for rank, failure in error.failures.items()}
    except SignalException:
        return {}
    return {}


def stop_processes(number: int) -> None:
    """Called in a signal handler while `start_processes` runs: passes the signal on to the processes."""
    from torch.distributed.elastic.multiprocessing import SignalException

    raise SignalException(f"signal {number}", signal.Signals(number))


def _end_with(parent: int) -> None:
    """Ends this process when its launcher has ended, which cannot end it any more."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(143)
