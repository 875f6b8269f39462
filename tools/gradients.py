"""The error of a step's gradient: the same windows in more or fewer batches, held against fp64.

    python -m tools.gradients [--windows 4096] [--set model.position=learned …]

Prints for each precision, in C and in torch alone, the error of the first step's gradient over all windows
relative to its norm, and the parameter whose own gradient has the largest relative error. The reference is
the gradient in fp64 of the model with the same weights (for bf16 the rounded ones), in plain torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gptkit.backend import Backend, fast_operations
from gptkit.experiment.load import experiment_from_dict
from gptkit.experiment.schema import Experiment
from gptkit.model import GPT, fast
from gptkit.model.build import build_new_model
from gptkit.native import usable
from gptkit.plugins.tokenizer import Ids
from gptkit.training.setup import build_trainer
from tools.support import argument_parser

VOCABULARY = 65
SEED = 3

# Everything that has a gradient of its own: biases, gains, embeddings of tokens and positions
SETTINGS = {
    "model.context_length": 32,
    "model.n_layer": 2,
    "model.n_head": 2,
    "model.n_embd": 32,
    "model.norm": "layernorm",
    "model.bias": True,
    "model.position": "learned",
    "model.mlp": "gelu",
    "model.init": "gpt2",
    "training.grad_clip": 0.0,
    "optimizer": "adamw",
}


@dataclass(frozen=True)
class GradientError:
    """Relative to the norm of the true gradient, and of that parameter's."""

    whole: float
    worst: float
    worst_parameter: str


def text(windows: int, context_length: int) -> Ids:
    """Ids as unevenly distributed as the characters of a text, where one in six is a space."""
    weights = 1 / np.arange(1, VOCABULARY + 1)
    draws = np.random.Generator(np.random.PCG64(1))
    count = (windows + 1) * context_length + 1
    return draws.choice(VOCABULARY, count, p=weights / weights.sum()).astype(np.uint16)


def new_model(experiment: Experiment) -> GPT:
    """With noise on all its weights, so that no gradient is zero."""
    model = build_new_model(experiment, VOCABULARY, SEED)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0, 0.05, generator=generator))
    return model


def reference(experiment: Experiment, precision: str, ids: Ids, windows: int) -> dict[str, Tensor]:
    """The gradient by parameter name, in fp64, over the same windows."""
    with fast.using(None):
        trainer = build_trainer(
            experiment, Backend("cpu", precision, 1, False), new_model(experiment), ids, SEED
        )
        model = trainer.model.double()
        size = experiment.training.batch_size
        for first in range(0, windows, size):
            inputs, targets = trainer.batches.batch(first // size)
            loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum")
            (loss / (windows * experiment.model.context_length)).backward()  # type: ignore[no-untyped-call]
    return {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def errors(
    settings: dict[str, object], precision: str, splits: Sequence[tuple[int, int]], *, native: bool
) -> Iterator[GradientError]:
    """For each split of the windows, as batch size and batches per step, the error of the first step."""
    windows = splits[0][0] * splits[0][1]
    experiment = experiment_of(settings, min(windows, 64), 1)
    ids = text(windows, experiment.model.context_length)
    true = reference(experiment, precision, ids, windows)
    for batch_size, count in splits:
        backend = Backend("cpu", precision, 1, False)
        with fast.using(fast_operations("cpu", native=native)):
            experiment = experiment_of(settings, batch_size, count)
            trainer = build_trainer(experiment, backend, new_model(experiment), ids, SEED)
            trainer.step()
        found = trainer.parameters.named(trainer.parameters.gradient)
        squares = {name: ((found[name] - true[name]).norm() ** 2).item() for name in true}
        sizes = {name: (true[name].norm() ** 2).item() for name in true}
        each = {name: (squares[name] / sizes[name]) ** 0.5 for name in true}
        worst = max(each, key=lambda name: each[name])
        whole = (sum(squares.values()) / sum(sizes.values())) ** 0.5
        yield GradientError(whole, each[worst], worst)


def experiment_of(settings: dict[str, object], batch_size: int, count: int) -> Experiment:
    tables: dict[str, dict[str, object] | object] = {}
    sizes = {"training.batch_size": batch_size, "training.gradient_accumulation_steps": count}
    for key, value in {**SETTINGS, **settings, **sizes}.items():
        table, _, field = key.partition(".")
        if field:
            tables.setdefault(table, {})[field] = value  # type: ignore[index]
        else:
            tables[table] = value
    return experiment_from_dict(tables)


def main() -> None:
    parser = argument_parser("gradients", __doc__)
    parser.add_argument("--windows", type=int, default=4096, help="of the step (4096)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a field of the experiment"
    )
    options = parser.parse_args()
    settings: dict[str, object] = dict(item.split("=", 1) for item in options.set)
    windows = options.windows
    sizes = [size for size in (windows, windows // 4, 64, 16, 4, 1) if windows % size == 0]
    splits = [(size, windows // size) for size in dict.fromkeys(sizes)]
    print(f"{'':22}" + "".join(f"{size:>6} x {count:<6}" for size, count in splits))
    for precision in ("bf16", "fp32"):
        for native in (True, False) if usable() else (False,):
            found = list(errors(settings, precision, splits, native=native))
            where = "in C" if native else "in torch"
            print(f"{precision} {where:17}" + "".join(f"{error.whole:>14.2%} " for error in found))
            print(f"{'  worst parameter':22}" + "".join(f"{error.worst:>14.2%} " for error in found))
            print(f"{'':22}" + " ".join(f"{error.worst_parameter[-14:]:>14}" for error in found), flush=True)


if __name__ == "__main__":
    main()
