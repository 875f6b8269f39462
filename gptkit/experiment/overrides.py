"""Overrides of an experiment's fields: the flags that set one, `--set KEY=VALUE`, and pairs from Python.

Input: the words of a command line. Output: `Override` values, for `load` to apply. Each flag is described
here and nowhere else, as plain data: `gptkit --help` needs them, but not pydantic, which is slow to import.
Knows nothing of the schema; `fields` joins a flag to its field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptkit.errors import UsageError
from gptkit.files import parse_toml

# Fields that answer one question, of which an override replaces the others
ALTERNATIVES = {
    "the length of training": ("training.max_steps", "training.epochs", "training.minutes"),
    "AdamW's learning rate": ("optimizer.adamw_learning_rate_ratio", "optimizer.adamw_learning_rate"),
}
QUESTIONS = {key: question for question, keys in ALTERNATIVES.items() for key in keys}


@dataclass(frozen=True)
class Override:
    """A field that is set over what the file has."""

    key: str  # dotted
    value: Any  # as TOML has it; None: not set
    origin: str = ""  # as the command line has it, "--heads 3"; "" from Python


@dataclass(frozen=True)
class Flag:
    """A flag of the command line and the field that it sets."""

    key: str  # dotted
    names: tuple[str, ...]  # messages use the first
    type: type[int] | type[float] | type[str] | type[bool]  # bool: a switch, which takes no value
    metavar: str
    help: str
    panel: str = ""  # the heading in `--help`
    sets: bool = True  # what a switch sets its field to

    @property
    def name(self) -> str:
        return self.names[0]

    def override(self, value: Any) -> Override:
        """The override by this flag with that value."""
        if self.type is bool:
            return Override(self.key, self.sets, self.name)
        return Override(self.key, value, f"{self.name} {value}")


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
    Flag("seed", ("--seed",), int, "N", "Random, and recorded, unless given.", "Training"),
    Flag("model.context_length", ("--ctx", "-c"), int, "N", "Tokens that the model sees at once.", "Model"),
    Flag("model.n_embd", ("--emb", "-e"), int, "N", "Width: the size of a token's embedding.", "Model"),
    Flag("model.n_head", ("--heads",), int, "N", "Attention heads; divides --emb.", "Model"),
    Flag("model.n_layer", ("--blocks", "--bl", "-b"), int, "N", "Layers.", "Model"),
    Flag(
        "model.dropout", ("--drop", "-d"), float, "X", "Fraction of activations dropped in training.", "Model"
    ),
    Flag(
        "data.dataset",
        ("--dataset",),
        str,
        "NAME|FILE",
        "A dataset, or a text: a file, folder or glob, looked up as given and in the data folders.",
        "Data",
    ),
    Flag(
        "init_from.run",
        ("--load",),
        str,
        "RUN",
        "Start from another run's weights and tokenizer.",
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


def parse_override(text: str) -> Override:
    """`model.n_layer=6`, as after --set. The value is TOML, or else the text itself.

    Raises UsageError for a text that is not KEY=VALUE.
    """
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise UsageError(f"--set {text!r}: expected KEY=VALUE, as in --set training.max_steps=200")
    if key.endswith(" "):  # model.norm = layernorm
        value = value.strip()
    key = key.strip()
    origin = f"--set {key}={value}"
    try:
        parsed = parse_toml(f"value = {value}")
    except (ValueError, RecursionError):
        return Override(key, value, origin)
    return Override(key, parsed["value"] if len(parsed) == 1 else value, origin)


def parse_overrides(pairs: Sequence[str], flags: Mapping[str, Any]) -> list[Override]:
    """The overrides of a command line: texts of --set, and the values of flags by key (None: not given).

    A table comes before its fields. Raises UsageError for two of the same field, or two lengths of training.
    """
    overrides = [parse_override(pair) for pair in pairs]
    overrides += [flag.override(flags[flag.key]) for flag in FLAGS if flags.get(flag.key) is not None]
    first: dict[str, Override] = {}
    for override in overrides:
        for key in keys(override.key, override.value):
            question = QUESTIONS.get(key, key.removesuffix(".type"))
            other = first.setdefault(question, override)
            if other is not override:
                raise UsageError(
                    f"{other.origin} and {override.origin} both set {question}; keep one of them."
                )
    if flags.get("data.dataset") is not None:  # a dataset that is named here is the one to use
        others = ("data.fallback", "data.val")
        unset = [
            key for key in others if not any(name == key or name.startswith(f"{key}.") for name in first)
        ]
        overrides += [Override(key, None) for key in unset]
    return sorted(overrides, key=table_first)


def table_first(override: Override) -> int:
    """Sorts overrides so that a table comes before its fields."""
    return override.key.count(".")


def keys(key: str, value: Any) -> Iterator[str]:
    """The dotted keys of the fields that a value sets."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from keys(f"{key}.{name}", inner)
    else:
        yield key
