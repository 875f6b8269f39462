"""The flags of the command line that set a field of an experiment, each described once.

Plain data without pydantic, which takes long to import and which `gptkit --help` does not need. `fields`
joins a flag to its field; `gptkit.cli.options` makes a command-line option of it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """A flag and the field that it sets."""

    key: str  # dotted
    names: tuple[str, ...]  # messages use the first
    type: type[int] | type[float] | type[str] | type[bool]
    metavar: str  # "" for a switch, which has no value
    help: str
    panel: str = ""  # the heading that it stands under in `--help`
    sets: bool = True  # what a switch sets

    @property
    def name(self) -> str:
        return self.names[0]


FLAGS = (
    Flag("training.max_steps", ("--steps",), int, "N", "Optimizer updates.", "Training"),
    Flag(
        "training.epochs",
        ("--epochs",),
        float,
        "X",
        "Passes over the training text, instead of --steps.",
        "Training",
    ),
    Flag(
        "training.minutes",
        ("--minutes",),
        float,
        "X",
        "Minutes of training, instead of --steps; the schedule ends with the time.",
        "Training",
    ),
    Flag("training.batch_size", ("--batch-size", "-B"), int, "N", "Sequences in a forward pass.", "Training"),
    Flag(
        "optimizer.learning_rate",
        ("--learning-rate", "--lr", "-l"),
        float,
        "X",
        "The peak of the schedule.",
        "Training",
    ),
    Flag("optimizer.weight_decay", ("--l2-reg",), float, "X", "Weight decay.", "Training"),
    Flag(
        "evaluation.eval_interval",
        ("--eval-interval",),
        int,
        "N",
        "Steps from one evaluation to the next.",
        "Training",
    ),
    Flag("seed", ("--seed",), int, "N", "Random, and recorded, where none says.", "Training"),
    Flag("model.context_length", ("--ctx", "-c"), int, "N", "Tokens that the model sees at once.", "Model"),
    Flag("model.n_embd", ("--emb", "-e"), int, "N", "Width: numbers that stand for a token.", "Model"),
    Flag("model.n_head", ("--heads",), int, "N", "Attention heads; divides --emb.", "Model"),
    Flag("model.n_layer", ("--blocks", "--bl", "-b"), int, "N", "Layers.", "Model"),
    Flag("model.dropout", ("--drop", "-d"), float, "X", "Share of activations dropped in training.", "Model"),
    Flag(
        "data.dataset",
        ("--dataset",),
        str,
        "NAME|FILE",
        "A dataset, or a text: a file, folder or glob, looked up as given and in the data folders.",
        "Data",
    ),
    Flag("training.backend", ("--backend", "--device"), str, "NAME", "auto, cpu, cuda or mps."),
    Flag("name", ("--name", "--output"), str, "NAME", "The run's name."),
    Flag(
        "checkpoints.save",
        ("--no-save",),
        bool,
        "",
        "Train and record, but write no checkpoint.",
        sets=False,
    ),
)
