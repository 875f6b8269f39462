"""T5's relative position bias, as a positional encoding of gptkit.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
section 2.1: a learned number for each head and each bucket of distances is added to the attention scores. All
layers share them.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from gptkit.plugins import ModelShape, PluginOptions, PositionalEncoding


class T5Bias(PositionalEncoding):
    """The causal variant: buckets are distances behind the query; keys ahead of it count as distance 0.

    The first half of the buckets are single distances. The others grow geometrically up to `max_distance`;
    the last one has all larger distances.
    """

    class Options(PluginOptions):
        num_buckets: int = Field(default=32, ge=2, le=4096, description="Learned numbers per head.")
        max_distance: int = Field(default=128, ge=2, le=2**20, description="End of the growing buckets.")

        @model_validator(mode="after")
        def _buckets_fit(self) -> T5Bias.Options:
            if self.max_distance <= self.num_buckets // 2:
                raise ValueError(
                    f"max_distance should be more than half of num_buckets, {self.num_buckets // 2}; "
                    f"it is {self.max_distance}"
                )
            return self

    summary = "a learned bias for each head and bucket of distances (T5)"

    def __init__(self, options: Options, shape: ModelShape) -> None:
        super().__init__(options, shape)
        self.embedding = nn.Embedding(options.num_buckets, shape.n_head)  # initialized by gptkit
        starts = torch.tensor(_bucket_starts(options.num_buckets, options.max_distance))
        self.register_buffer("starts", starts, persistent=False)  # (num_buckets,)
        self.starts: Tensor

    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """(Tq,), (Tk,) -> (H, Tq, Tk)."""
        distance = query_positions.unsqueeze(1) - key_positions.unsqueeze(0)  # (Tq, Tk)
        bucket = torch.bucketize(distance.clamp(min=0), self.starts, right=True) - 1
        out: Tensor = self.embedding(bucket)  # (Tq, Tk, H)
        return out.permute(2, 0, 1)


def _bucket_starts(num_buckets: int, max_distance: int) -> list[int]:
    """The smallest distance of each bucket.

    With E = num_buckets // 2 exact ones and W = num_buckets - E wider ones, distance n >= E is in bucket
    E + floor(W ln(n / E) / ln(max_distance / E)), or in the last; so bucket E + j begins at
    n = E (max_distance / E)^(j / W).
    """
    exact = num_buckets // 2
    wider = num_buckets - exact
    ends = [exact * (max_distance / exact) ** (j / wider) for j in range(wider)]
    return [*range(exact), *(math.ceil(end - 1e-9) for end in ends)]  # rounding may lift a whole number
