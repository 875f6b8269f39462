"""run.json and evaluations.json as types: what a run is, what it was trained with, how it went.

Input: a JSON object, which may come from another version of gptkit or be damaged on purpose. Output: a
`RunRecord` or `Evaluations`. Reading never fails because of a value: one of the wrong type, out of range or
too long becomes None, or the default of its field. Unknown keys are kept and written back. Knows nothing of
folders or locks.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError, ValidationError

from gptkit.errors import CheckpointError
from gptkit.events import RunStatus
from gptkit.files import MAX_DEPTH, parse_json, replace_file, to_json

_MAX_BYTES = 10_000_000
_MAX_TEXT = 100_000  # characters of a value
_MAX_PLUGINS = 1_000
_MAX_TEXTS = 100
_MAX_BLOCKS = 1_000


def _or_else(default: Callable[[], Any]) -> WrapValidator:
    """Replaces a value that does not validate."""

    def validate(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except (ValidationError, PydanticCustomError):
            return default()

    return WrapValidator(validate)


def _none() -> None:
    return None


def _text(value: object) -> str | None:
    """Any short text, lone surrogates included: a command line may contain bytes that are not UTF-8."""
    return value if isinstance(value, str) and len(value) <= _MAX_TEXT else None


def _texts(value: object) -> list[str]:
    return [text for text in map(_text, value[:_MAX_TEXTS]) if text] if isinstance(value, list) else []


def plain_tables(value: object) -> dict[str, Any] | None:
    """Nested tables as a run records an experiment; None for anything else, and if they are too deep."""
    return value if isinstance(value, dict) and _is_shallow(value, MAX_DEPTH) else None


def _is_shallow(value: object, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_shallow(one, depth - 1) for one in inner)


def _objects(value: object) -> list[Any] | None:
    if not isinstance(value, list):
        return None
    return [item for item in value[:_MAX_PLUGINS] if isinstance(item, dict | PluginOrigin)]


def _losses(value: object) -> tuple[float, ...]:
    """Finite numbers; none if one of them is anything else."""
    if not isinstance(value, list | tuple) or len(value) > _MAX_BLOCKS:
        return ()
    numbers = [item for item in value if isinstance(item, int | float) and not isinstance(item, bool)]
    return (
        tuple(map(float, numbers))
        if len(numbers) == len(value) and all(abs(x) < 1e300 for x in numbers)
        else ()
    )


Text = Annotated[str | None, PlainValidator(_text)]
Texts = Annotated[list[str], PlainValidator(_texts)]
Whole = Annotated[int | None, Field(strict=True, ge=0, lt=2**63), _or_else(_none)]
Number = Annotated[float | None, Field(strict=True, gt=-1e300, lt=1e300), _or_else(_none)]
Flag = Annotated[bool | None, Field(strict=True), _or_else(_none)]
Table = Annotated[dict[str, Any], _or_else(dict)]
Tables = Annotated[dict[str, Any] | None, PlainValidator(plain_tables)]


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _drop_keys_that_are_no_text(cls, value: Any) -> Any:
        """A key of JSON may be half of a surrogate pair, which pydantic does not take as a name."""
        if not isinstance(value, dict):
            return value
        return {key: item for key, item in value.items() if key.encode("utf-8", "replace").decode() == key}


class Process(_Lenient):
    """The process that trains a run."""

    pid: Whole = None
    host: Text = None

    @classmethod
    def current(cls) -> Process:
        return cls(pid=os.getpid(), host=socket.gethostname())


class DatasetRecord(_Lenient):
    title: Text = None
    requested: Table = {}  # as in the experiment file
    used: Table = {}  # as resolved; another dataset where the fallback was used
    characters: Whole = None
    sha256: Text = None  # of the text
    folders: Texts = []  # where it was looked for: the working directory, then the data folders
    facts: Table = {}  # from the dataset plugin
    val: Table = {}  # the text for validation as resolved, where it is one of its own
    val_sha256: Text = None


class TokenizerRecord(_Lenient):
    type: Text = None
    vocab_size: Whole = None
    sha256: Text = None
    ids_sha256: Text = None  # of the ids of both splits
    train_tokens: Whole = None
    val_tokens: Whole = None
    lossless: Flag = None  # whether it returns the text of the val split; None before it was measured
    lost: Number = None  # the fraction of the characters that it does not return
    example: Text = None  # of what it does not return


class Hyperparameters(_Lenient):
    context_length: Whole = None
    n_embd: Whole = None
    n_head: Whole = None
    n_layer: Whole = None
    dropout: Number = None
    position: Text = None
    batch_size: Whole = None
    optimizer: Text = None
    learning_rate: Number = None


class PluginOrigin(_Lenient):
    """The distribution and version that a plugin came from."""

    family: Text = None
    name: Text = None
    distribution: Text = None
    version: Text = None
    code: Text = None  # of a positional encoding of another package


class Environment(_Lenient):
    """What can change the last bits of a result: `gptkit.backend.fingerprint`."""

    device: Text = None
    precision: Text = None
    threads: Whole = None
    compile: Flag = None
    native: Text = None
    operations: Annotated[dict[str, str] | None, _or_else(_none)] = None  # implementations, by operation
    processes: Whole = None  # None: one, before there were several


class LoadedFrom(_Lenient):
    """The run and step whose weights a run started from."""

    run: Text = None
    step: Whole = None
    sha256: Text = None  # of the weights


class ImportedFrom(_Lenient):
    """Where the weights of an imported run come from."""

    kind: Text = None
    path: Text = None


class ChangedField(_Lenient):
    """A field of the experiment that was set to another value when the run was resumed; None: not set."""

    field: Text = None  # its dotted key
    old: Any = None
    new: Any = None


class Resumed(_Lenient):
    """A step after which the run was resumed, and what was then no longer as before."""

    step: Whole = None
    changes: Annotated[list[ChangedField], _or_else(list)] = []
    # From the environment in which the run began, as "torch 2.12 -> 2.13"
    differences: Texts = []


class RunRecord(_Lenient):
    """run.json, in the order in which it is written. A field that was never set is not written."""

    format: Whole = None
    id: Text = None
    name: Text = None
    status: Annotated[RunStatus | None, _or_else(_none)] = None
    started: Text = None  # ISO 8601 with the offset from UTC
    command: Text = None
    process: Annotated[Process | None, _or_else(_none)] = None  # while it trains
    target_step: Whole = None  # None if the run ends after a time
    dataset: Annotated[DatasetRecord, _or_else(DatasetRecord)] = DatasetRecord()
    tokenizer: Annotated[TokenizerRecord, _or_else(TokenizerRecord)] = TokenizerRecord()
    hyperparameters: Annotated[Hyperparameters, _or_else(Hyperparameters)] = Hyperparameters()
    plugins: Annotated[list[PluginOrigin] | None, BeforeValidator(_objects)] = None
    environment: Annotated[Environment | None, _or_else(_none)] = None
    evaluation: Text = None  # gptkit.data.sampler.EvaluationRule; None in 0.1.0
    loaded_from: Annotated[LoadedFrom | None, _or_else(LoadedFrom)] = None
    imported_from: Annotated[ImportedFrom | None, _or_else(ImportedFrom)] = None
    experiment_sha256: Text = None  # of gptkit.experiment.identity
    experiment: Tables = None  # resolved, as experiment.toml has it
    resumed: Annotated[list[Resumed], _or_else(list)] = []
    rerun_of: Text = None
    parameters: Whole = None
    last_checkpoint: Whole = None
    reason: Text = None  # why it finished before its last step
    ended: Text = None
    step: Whole = None
    train_loss: Number = None  # nats per token, as the other losses
    val_loss: Number = None
    best_val_loss: Number = None
    best_bits_per_byte: Number = None
    best_step: Whole = None
    tokens: Whole = None  # trained on
    seconds: Number = None  # of training

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Raises CheckpointError if the file cannot be read or is not a JSON object."""
        return cls.model_validate(read_json_object(path, max_bytes=_MAX_BYTES))

    def write(self, path: Path) -> None:
        """Replaces the file as a whole. Raises OSError."""
        replace_file(path, to_json(self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        record = self.model_dump(exclude_unset=True)
        if self.process is None:
            record.pop("process", None)
        return record


class EvaluationRecord(_Lenient):
    """An evaluation with the losses of contiguous blocks of the val split."""

    step: Whole = None
    val_loss: Number = None  # nats per token
    block_losses: Annotated[tuple[float, ...], PlainValidator(_losses)] = ()  # nats per token


class Evaluations(_Lenient):
    """evaluations.json: the best evaluation of a run and its last."""

    best: Annotated[EvaluationRecord, _or_else(EvaluationRecord)] = EvaluationRecord()
    last: Annotated[EvaluationRecord, _or_else(EvaluationRecord)] = EvaluationRecord()

    @classmethod
    def read(cls, path: Path) -> Evaluations:
        """Raises CheckpointError if the file cannot be read or is not a JSON object."""
        return cls.model_validate(read_json_object(path))

    def write(self, path: Path) -> None:
        """Replaces the file as a whole. Raises OSError."""
        replace_file(path, to_json(self.model_dump(exclude_unset=True)))


def timestamp(moment: str | None) -> float:
    """Seconds since 1970 of a moment as recorded, so that those of several time zones compare; 0 for None."""
    try:
        return datetime.fromisoformat(moment or "").timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0


def read_json_object(path: Path, *, max_bytes: int = _MAX_BYTES) -> dict[str, Any]:
    """The JSON object in a file of a run. Raises CheckpointError; follows no link."""
    try:
        if path.is_symlink() or not path.is_file():
            raise ValueError("there is no such file")
        if path.stat().st_size > max_bytes:
            raise ValueError("it is too large")
        value = parse_json(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return value
