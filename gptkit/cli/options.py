"""The flags of the commands, each described once, and how those of `train` become overrides of fields."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gptkit.cli import completion
from gptkit.errors import UsageError

_MODEL, _DATA, _TRAINING = "Model", "Data", "Training"


def _field(help: str, field: str) -> str:
    """A flag's help with the field that it sets, in brackets that are no markup."""
    return f"{help} \\[{field}]"


def _flag(*names: str, metavar: str, help: str, field: str, panel: str, complete: Any = None) -> Any:
    return typer.Option(
        *names, metavar=metavar, help=_field(help, field), rich_help_panel=panel, autocompletion=complete
    )


RunsDir = Annotated[
    Path, typer.Option("--runs-dir", metavar="FOLDER", help="Where runs are kept.", rich_help_panel="Where")
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="FOLDER",
        help="Where texts are looked for first. Then: $GPTKIT_DATA_DIR, data/.",
        rich_help_panel="Where",
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Print the run's folder on standard output, and nothing else.")
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print what happens as JSON lines on standard output, and nothing else. Not with --quiet.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something goes wrong.")]
RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run's folder, its id, a unique beginning of it, or 'latest'.",
        autocompletion=completion.runs,
    ),
]
Backend = Annotated[
    str | None,
    typer.Option(
        "--backend",
        "--device",
        metavar="NAME",
        help=_field("auto, cpu, cuda or mps.", "training.backend"),
        autocompletion=completion.backends,
    ),
]
StopAt = Annotated[
    int | None,
    typer.Option(
        "--stop-at",
        metavar="N",
        min=1,
        help="Stop after step N, saved, as if interrupted; go on with resume.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override any field, as in training.max_steps=200. Repeatable.",
        autocompletion=completion.settings,
    ),
]


Steps = Annotated[
    int | None,
    _flag("--steps", metavar="N", help="Optimizer updates.", field="training.max_steps", panel=_TRAINING),
]
Epochs = Annotated[
    float | None,
    _flag(
        "--epochs",
        metavar="X",
        help="Passes over the training text, instead of --steps.",
        field="training.epochs",
        panel=_TRAINING,
    ),
]
Minutes = Annotated[
    float | None,
    _flag(
        "--minutes",
        metavar="X",
        help="Minutes of training, instead of --steps; the schedule ends with the time.",
        field="training.minutes",
        panel=_TRAINING,
    ),
]
BatchSize = Annotated[
    int | None,
    _flag(
        "--batch-size",
        "-B",
        metavar="N",
        help="Sequences in a forward pass.",
        field="training.batch_size",
        panel=_TRAINING,
    ),
]
LearningRate = Annotated[
    float | None,
    _flag(
        "--learning-rate",
        "--lr",
        "-l",
        metavar="X",
        help="The peak of the schedule.",
        field="optimizer.learning_rate",
        panel=_TRAINING,
    ),
]
WeightDecay = Annotated[
    float | None,
    _flag("--l2-reg", metavar="X", help="Weight decay.", field="optimizer.weight_decay", panel=_TRAINING),
]
EvalInterval = Annotated[
    int | None,
    _flag(
        "--eval-interval",
        metavar="N",
        help="Steps from one evaluation to the next.",
        field="evaluation.eval_interval",
        panel=_TRAINING,
    ),
]
Seed = Annotated[
    int | None,
    _flag(
        "--seed", metavar="N", help="Random, and recorded, where none says.", field="seed", panel=_TRAINING
    ),
]
Context = Annotated[
    int | None,
    _flag(
        "--ctx",
        "-c",
        metavar="N",
        help="Tokens that the model sees at once.",
        field="model.context_length",
        panel=_MODEL,
    ),
]
Width = Annotated[
    int | None,
    _flag(
        "--emb",
        "-e",
        metavar="N",
        help="Width: numbers that stand for a token.",
        field="model.n_embd",
        panel=_MODEL,
    ),
]
Heads = Annotated[
    int | None,
    _flag("--heads", metavar="N", help="Attention heads; divides --emb.", field="model.n_head", panel=_MODEL),
]
Blocks = Annotated[
    int | None,
    _flag("--blocks", "--bl", "-b", metavar="N", help="Layers.", field="model.n_layer", panel=_MODEL),
]
Dropout = Annotated[
    float | None,
    _flag(
        "--drop",
        "-d",
        metavar="X",
        help="Share of activations dropped in training.",
        field="model.dropout",
        panel=_MODEL,
    ),
]
DatasetName = Annotated[
    str | None,
    _flag(
        "--dataset",
        metavar="NAME|FILE",
        help="A dataset, or a text: a file, folder or glob, looked up as given and in the data folders.",
        field="data.dataset",
        panel=_DATA,
        complete=completion.datasets,
    ),
]
RunName = Annotated[
    str | None, typer.Option("--output", "--name", metavar="NAME", help=_field("The run's name.", "name"))
]
NoSave = Annotated[
    bool,
    typer.Option("--no-save", help=_field("Train and record, but write no checkpoint.", "checkpoints.save")),
]
GenerateAfter = Annotated[
    int | None,
    typer.Option(
        "--generate", "-g", metavar="N", min=0, max=2**31 - 1, help="Write N tokens when training ends."
    ),
]
LoadFrom = Annotated[
    str | None,
    typer.Option(
        "--load",
        metavar="RUN",
        help="Start from another run's weights and tokenizer.",
        autocompletion=completion.runs,
    ),
]


def check_json(as_json: bool, others: dict[str, bool]) -> None:
    """Raises UsageError where --json is given with a flag that wants standard output for itself."""
    for flag, given in others.items():
        if as_json and given:
            raise UsageError(f"--json and {flag} both say what goes to standard output; give one of them.")


# The flags that errors name, by the field that they set
_FLAGS = {
    "training.max_steps": "--steps",
    "training.epochs": "--epochs",
    "training.minutes": "--minutes",
    "training.batch_size": "--batch-size",
    "optimizer.learning_rate": "--learning-rate",
    "optimizer.weight_decay": "--l2-reg",
    "evaluation.eval_interval": "--eval-interval",
    "seed": "--seed",
    "model.context_length": "--ctx",
    "model.n_embd": "--emb",
    "model.n_head": "--heads",
    "model.n_layer": "--blocks",
    "model.dropout": "--drop",
    "data.dataset": "--dataset",
    "training.backend": "--backend",
    "name": "--name",
    "checkpoints.save": "--no-save",
}


def overrides(pairs: list[str] | None, flags: dict[str, Any]) -> list[tuple[str, Any]]:
    """--set pairs, then flags by the dotted key that they stand for; those not given (None) left out.

    A dataset named here is meant: no fallback takes its place.
    """
    from gptkit.experiment import FlagKey, parse_override

    given = [parse_override(pair) for pair in pairs or []]
    lengths = ("training.max_steps", "training.epochs", "training.minutes")
    said = [_FLAGS[field] for field in lengths if flags.get(field) is not None]
    if len(said) > 1:
        raise UsageError(f"{said[0]} and {said[1]} say the same thing twice; give one of them.")
    for key, value in flags.items():
        if value is not None:
            words = _FLAGS[key] if isinstance(value, bool) else f"{_FLAGS[key]} {value}"
            given.append((FlagKey(key, words), value))
    if flags.get("data.dataset") is not None:
        given.append(("data.fallback", None))
        # Options that --set gives are those of the dataset that is named here, not of the file's
        given.sort(key=lambda pair: pair[0].startswith("data.dataset."))
    return given
