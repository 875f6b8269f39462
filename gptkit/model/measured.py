"""Times the implementations of operations at the shapes of a run, and finds the fastest of each.

Input: a GPT with at least one block, a batch for it, and a table of implementations. Output: a `Measurement`
for each operation and shape, and the names of the fastest. Knows nothing of runs, files or C.

A time is that of one call, forward and backward, on one thread: the least of several rounds in which the
implementations take turns. It is the processor time of the thread, so that other work on the machine does
not decide.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gptkit.model import fast, ops
from gptkit.model.fast import Implementations
from gptkit.model.gpt import GPT
from gptkit.model.ops import Implementation

PLAIN = "torch"  # the name of an operation's body
BLOCKS = "Blocks"  # contains all others but the last norm and the loss

# Another implementation is taken if it is faster than the first of the table by this factor. Two that are as
# fast would otherwise be chosen by chance, and runs of one experiment would differ in their last bits.
CLEARLY = 1.05

_HOPELESS = 4.0  # times the fastest, in a first round, which is slower than the others by less than that

# Only makes the layout that an implementation of the other operation reads best
_FOLLOWS = {"split_heads": "attend"}


@dataclass(frozen=True)
class Candidate:
    """An implementation of an operation; it has no time where it cannot serve the call."""

    name: str
    seconds: float | None  # forward and backward
    unsupported: tuple[str, ...] = ()  # the reasons why not


@dataclass(frozen=True)
class Measurement:
    """An operation at one shape."""

    operation: str
    shape: str  # of its tensors, for a person
    calls: int  # in a step of the measured model
    candidates: tuple[Candidate, ...]  # in the order of the table; the body is the last one
    chosen: str
    reason: str


@dataclass(frozen=True)
class _Call:
    """A call of an operation while a model computes; `count` calls had tensors of the same shapes."""

    operation: str
    arguments: tuple[Any, ...]
    count: int


def measure(
    model: GPT, tokens: Tensor, targets: Tensor, table: Implementations, seconds: float
) -> list[Measurement]:
    """Every operation of a training step: tokens and targets (B, T). `seconds` is the limit for each call."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(model, tokens, targets, table, seconds)
    finally:
        torch.set_num_threads(threads)


def _measure(
    model: GPT, tokens: Tensor, targets: Tensor, table: Implementations, seconds: float
) -> list[Measurement]:
    by_operation: dict[str, list[_Call]] = {}
    for call in _calls(model, tokens, targets):
        by_operation.setdefault(call.operation, []).append(call)
    blocks = by_operation.pop(BLOCKS, [])
    followers = {name: by_operation.pop(name) for name in _FOLLOWS if name in by_operation}
    found = [one for name, calls in by_operation.items() for one in _measure_one(name, calls, table, seconds)]
    chosen = choices(found)
    for name, calls in followers.items():
        wanted = chosen.get(_FOLLOWS[name], PLAIN)
        names = [*(one.name for one in table.get(name, ())), PLAIN]
        one = wanted if wanted in names else PLAIN
        reason = f"the layout for {_FOLLOWS[name]}"
        found += [Measurement(name, _shape(call), call.count, (), one, reason) for call in calls]
    with fast.using(selected(table, choices(found))):
        found += _measure_one(BLOCKS, blocks, table, seconds)
    return found


def choices(measurements: Sequence[Measurement]) -> dict[str, str]:
    """The chosen implementation of each operation, by name."""
    return {one.operation: one.chosen for one in measurements}


def selected(table: Implementations, chosen: Mapping[str, str]) -> Implementations:
    """The table with the chosen implementations before the others; the body of an operation as such."""
    found = dict(table)
    for operation, name in chosen.items():
        if name == PLAIN:
            found[operation] = ()
        elif operation in found:
            found[operation] = tuple(sorted(found[operation], key=lambda one: one.name != name))
    return found


def _calls(model: GPT, tokens: Tensor, targets: Tensor) -> list[_Call]:
    """The calls of a forward pass and its loss, those of the same operation and shapes once."""
    found: dict[tuple[Any, ...], _Call] = {}

    def watch(operation: str) -> Implementation:
        def note(*arguments: Any) -> list[str]:
            key = (operation, *map(_kind, arguments))
            count = found[key].count + 1 if key in found else 1
            found[key] = _Call(operation, arguments, count)
            return ["it only watches"]

        return Implementation("watch", note, ops.bodies[operation])

    model.train()
    with fast.using({name: (watch(name),) for name in ops.bodies}), torch.enable_grad():
        ops.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    return list(found.values())


def _kind(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.shape, argument.stride(), argument.dtype
    return type(argument) if isinstance(argument, nn.Module) else argument


def _shape(call: _Call) -> str:
    words = [one for one in call.arguments if isinstance(one, str)]
    tensor = next(one for one in call.arguments if isinstance(one, Tensor))
    return " ".join([*words, " x ".join(map(str, tensor.shape))])


def _measure_one(
    operation: str, calls: list[_Call], table: Implementations, seconds: float
) -> list[Measurement]:
    """All shapes of one operation: the implementation with the least sum of times is chosen for all."""
    registered = table.get(operation, ())

    def body_unsupported(*arguments: Any) -> list[str]:
        better = [one.name for one in registered if one.more_precise and not one.unsupported(*arguments)]
        return [f"it is less precise than {name!r}" for name in better]

    implementations = (*registered, Implementation(PLAIN, body_unsupported, ops.bodies[operation]))
    timed = [_time_all(call, implementations, seconds) for call in calls]
    sums: dict[str, float] = {}
    for name in [one.name for one in implementations]:
        times = [next(one.seconds for one in candidates if one.name == name) for candidates in timed]
        if all(one is not None for one in times):
            sums[name] = sum((one or 0.0) * call.count for one, call in zip(times, calls, strict=True))
    first, best = next(iter(sums)), min(sums, key=sums.__getitem__)
    if sums[best] * CLEARLY >= sums[first]:
        best = first
    reason = "the only one" if len(sums) == 1 else "the fastest"
    if best == first and sums[best] > min(sums.values()):
        reason = f"as fast as the fastest, within {CLEARLY - 1:.0%}"
    return [
        Measurement(operation, _shape(call), call.count, candidates, best, reason)
        for call, candidates in zip(calls, timed, strict=True)
    ]


def _time_all(
    call: _Call, implementations: Sequence[Implementation], seconds: float
) -> tuple[Candidate, ...]:
    with torch.enable_grad():
        reasons = [one.unsupported(*call.arguments) for one in implementations]
        works = [
            _work(one.call, call.arguments)
            for one, against in zip(implementations, reasons, strict=True)
            if not against
        ]
        times = iter(_alternate(works, seconds))
    return tuple(
        Candidate(one.name, None if against else next(times), tuple(against))
        for one, against in zip(implementations, reasons, strict=True)
    )


def _alternate(works: Sequence[Callable[[], object]], seconds: float, rounds: int = 20) -> list[float]:
    """The least time of each: up to `rounds` rounds, at least 2, in about `seconds`, after one that warms up.

    One that takes several times as long as another in the first round takes part in no other.
    """
    best = [_time(work) for work in works]
    hopeful = [which for which, took in enumerate(best) if took < _HOPELESS * min(best)]
    for which in hopeful:
        best[which] = float("inf")
    started = time.thread_time()
    for number in range(rounds):
        if number >= 2 and time.thread_time() - started > seconds:
            break
        for which in hopeful:
            best[which] = min(best[which], _time(works[which]))
    return best


def _time(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def _work(call: Callable[..., Any], arguments: Sequence[Any]) -> Callable[[], object]:
    """The call with its gradients, for tensors of its own."""
    own = [
        one.detach().requires_grad_(one.requires_grad) if isinstance(one, Tensor) else one
        for one in arguments
    ]
    leaves = [one for one in own if isinstance(one, Tensor) and one.requires_grad]
    for module in own:
        if isinstance(module, nn.Module):
            leaves += [one for one in module.parameters() if one.requires_grad]
    gradient: list[Tensor] = []

    def run() -> None:
        out = call(*own)
        if not gradient:
            gradient.append(torch.ones_like(out))
        torch.autograd.grad(out, leaves, gradient, allow_unused=True)

    return run
