"""Positional encodings with one defect each, a few odd ones that are right, and which check finds it."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from gptkit.model.positions import AlibiPosition, LearnedPosition, NoPosition, RotaryPosition
from gptkit.native import usable
from gptkit.plugins import ModelShape


class OtherError(NoPosition):
    def __init__(self, options: Any, shape: ModelShape) -> None:
        super().__init__(options, shape)
        assert shape.head_size % 2 == 0, "heads of an even size"


class RefusesAll(NoPosition):
    def __init__(self, options: Any, shape: ModelShape) -> None:
        raise ValueError("n_embd must be 7")


class EmbedsOnce(LearnedPosition):
    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return self.embedding(positions)  # type: ignore[no-any-return]


class EmbedsInDouble(LearnedPosition):
    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return super().embed(x, positions).double()


class EmbedFailsInBf16(NoPosition):
    def __init__(self, options: Any, shape: ModelShape) -> None:
        super().__init__(options, shape)
        self.register_buffer("turn", torch.eye(shape.n_embd), persistent=False)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x @ self.turn  # type: ignore[operator]


class RotatesOne(RotaryPosition):
    rotation = NoPosition.rotation  # type: ignore[assignment]

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> Any:
        return super().rotate(q, k, positions)[0]


class RotatesToNothing(NoPosition):
    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return q / positions.view(-1, 1).float(), k


class BiasOfOneHead(AlibiPosition):
    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        return super().bias(query_positions, key_positions)[:1]


class BiasHidesAll(AlibiPosition):
    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        bias = super().bias(query_positions, key_positions)
        far = query_positions.unsqueeze(1) - key_positions > 3
        return bias.masked_fill(far, float("-inf"))


class BiasInIntegers(AlibiPosition):
    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        return super().bias(query_positions, key_positions).long()


class AlwaysDrops(NoPosition):
    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.1)


class RandomParameter(LearnedPosition):
    def __init__(self, options: Any, shape: ModelShape) -> None:
        super().__init__(options, shape)
        self.gain = nn.Parameter(torch.tensor(random.random()))

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return super().embed(x * self.gain, positions)


class CountsCalls(NoPosition):
    calls = 0

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


class SavesItsTable(AlibiPosition):
    def __init__(self, options: Any, shape: ModelShape) -> None:
        super().__init__(options, shape)
        self.register_buffer("slopes", self.slopes, persistent=True)


class PlainTable(AlibiPosition):
    def __init__(self, options: Any, shape: ModelShape) -> None:
        super().__init__(options, shape)
        table = self.slopes
        del self.slopes
        self.slopes = table


class TurnsBack(RotaryPosition):
    def rotation(self) -> tuple[Tensor, Tensor]:
        return self.cos, -self.sin


class HalfTables(RotaryPosition):
    def rotation(self) -> tuple[Tensor, Tensor]:
        half = self.shape.head_size // 2
        return self.cos[:, :half], self.sin[:, :half]


class TablesWithoutRotate(RotaryPosition):
    rotate = NoPosition.rotate


class EmbedLooksAhead(NoPosition):
    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x - x.mean(dim=1, keepdim=True)


class RotateLooksAhead(NoPosition):
    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return q, k - k.mean(dim=2, keepdim=True)


class BiasLooksAhead(AlibiPosition):
    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        return super().bias(query_positions, key_positions) / len(key_positions)


class EmbedCounts(LearnedPosition):
    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return super().embed(x, torch.arange(len(positions)))


class RotateCounts(RotaryPosition):
    rotation = NoPosition.rotation  # type: ignore[assignment]

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return super().rotate(q, k, torch.arange(q.size(2)))


class BiasCounts(AlibiPosition):
    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        return super().bias(torch.arange(len(query_positions)), key_positions)


class OtherwiseAlone(LearnedPosition):
    """A single token, early in the context, is taken for the beginning of a prompt."""

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        early = len(positions) == 1 and int(positions[0]) in (1, 2, 3)
        return x if early else super().embed(x, positions)


class TablesGoBad(RotaryPosition):
    """Tables that are right until the model has read something."""

    used = False

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        self.used = True
        return x

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return super().rotate(q, k, positions)

    def rotation(self) -> tuple[Tensor, Tensor]:
        return self.cos, -self.sin if self.used else self.sin


class UnusedParameter(NoPosition):
    def __init__(self, options: Any, shape: ModelShape) -> None:
        super().__init__(options, shape)
        self.gain = nn.Parameter(torch.ones(()))


class InfiniteGradient(NoPosition):
    def __init__(self, options: Any, shape: ModelShape) -> None:
        super().__init__(options, shape)
        self.gain = nn.Parameter(torch.ones(()))

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + (self.gain - self.gain.detach()).abs().sqrt()


class LearnsNothing(NoPosition):
    """In training every token is like every other."""

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return torch.ones_like(x) if self.training else x


class RaisesInTraining(NoPosition):
    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        if self.training:
            raise NotImplementedError("only for inference")
        return x


class RaisesInBf16Training(NoPosition):
    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        if self.training and x.dtype == torch.bfloat16:
            raise TypeError("bf16")
        return x


class OtherwiseCompiled(NoPosition):
    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + 1 if torch.compiler.is_compiling() else x


WRONG: list[tuple[type, str]] = [
    (OtherError, "shapes"),
    (RefusesAll, "shapes"),
    (EmbedsOnce, "embed"),
    (EmbedsInDouble, "embed"),
    (EmbedFailsInBf16, "embed"),
    (RotatesOne, "rotate"),
    (RotatesToNothing, "rotate"),
    (BiasOfOneHead, "bias"),
    (BiasHidesAll, "bias"),
    (BiasInIntegers, "bias"),
    (AlwaysDrops, "chance"),
    (RandomParameter, "same twice"),
    (CountsCalls, "same twice"),
    (SavesItsTable, "checkpoint"),
    (PlainTable, "devices"),
    (TurnsBack, "rotation tables"),
    (HalfTables, "rotation tables"),
    (TablesWithoutRotate, "rotation tables"),
    (EmbedLooksAhead, "future"),
    (RotateLooksAhead, "future"),
    (BiasLooksAhead, "future"),
    (EmbedCounts, "positions"),
    (RotateCounts, "positions"),
    (BiasCounts, "positions"),
    (OtherwiseAlone, "cached"),
    *([(TablesGoBad, "decoded")] if usable() else []),  # nothing else uses them
    (UnusedParameter, "trains in fp32"),
    (InfiniteGradient, "trains in fp32"),
    (LearnsNothing, "trains in fp32"),
    (RaisesInTraining, "trains in fp32"),
    (RaisesInBf16Training, "trains in bf16"),
    (OtherwiseCompiled, "compiled"),
]


# Odd, and right


class DropsInTraining(NoPosition):
    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.1, self.training)


class LearnedBias(NoPosition):
    """A number for each head and distance, 0 at first (T5's, Raffel et al. 2020, without buckets)."""

    def __init__(self, options: Any, shape: ModelShape) -> None:
        super().__init__(options, shape)
        self.by_distance = nn.Parameter(torch.zeros(shape.n_head, shape.context_length))

    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        distance = (query_positions.unsqueeze(1) - key_positions).clamp(min=0)
        return self.by_distance[:, distance]


class TurnsTwice(RotaryPosition):
    """Inherits tables that do not describe its `rotate`, and that the model therefore ignores."""

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return super().rotate(*super().rotate(q, k, positions), positions)


class WideHeads(RotaryPosition):
    """Refuses all but few shapes."""

    def __init__(self, options: Any, shape: ModelShape) -> None:
        if shape.head_size < 16:
            raise ValueError("heads of 16 and more")
        super().__init__(options, shape)


RIGHT: list[type] = [DropsInTraining, LearnedBias, TurnsTwice, WideHeads]
