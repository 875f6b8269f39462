"""From a run's folder to what it recorded: experiment, tokenizer, checkpoint, model. Changes nothing."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gptkit.errors import CheckpointError, PluginError, UsageError
from gptkit.experiment import Experiment
from gptkit.experiment.load import load_recorded
from gptkit.files import sha256, to_json
from gptkit.model import GPT
from gptkit.model.build import build_model_for, load_weights
from gptkit.plugins import Tokenizer, registry
from gptkit.runs import DEFAULT_RUNS_FOLDER, Run, refuse_special_files
from gptkit.runs.checkpoint import Checkpoint, list_steps, load_checkpoint, newest_checkpoint
from gptkit.runs.environment import changed_plugins, model_plugins, what_to_install


def read_model(
    run: Run, which: str = "best", *, warn: Callable[[str], None] = lambda message: None
) -> tuple[GPT, Tokenizer, Checkpoint]:
    """The model of a run at a checkpoint ("best", "last" or a step), in fp32 on the CPU, and its tokenizer.

    `warn` is told of a tokenizer or positional encoding of another version than the run's, and of a
    checkpoint that had to be passed over. Raises CheckpointError where something does not verify or does not
    fit together, PluginError.
    """
    experiment = run_experiment(run)
    _warn_of_changed_plugins(run, experiment, warn)
    tokenizer = run_tokenizer(run, experiment)
    checkpoint = read_checkpoint(run, which, warn=warn)
    check_tokenizer(run, checkpoint, tokenizer)
    whose = f"run {run.id}"
    model = build_model_for(experiment, tokenizer.vocab_size, checkpoint.model, whose)
    load_weights(model, checkpoint.model, whose)
    return model.eval(), tokenizer, checkpoint


def read_checkpoint(
    run: Run, which: str = "best", *, warn: Callable[[str], None] = lambda message: None
) -> Checkpoint:
    """The checkpoint that `which` means: "best", "last" or a step.

    "last" is the newest that verifies, "best" the one of the lowest val loss, or the last where no evaluation
    was made. Raises CheckpointError, UsageError.
    """
    check_saved(run)
    if which.isdecimal() and len(which) <= 12:
        return load_checkpoint(run.checkpoints, int(which), run_id=recorded_id(run))
    if which not in ("best", "last"):
        raise UsageError(f"--checkpoint {which!r}: expected best, last or a step.")
    made_as = recorded_id(run)
    last = newest_checkpoint(run.checkpoints, run_id=made_as, on_bad=lambda step, error: warn(str(error)))
    progress = last.state.get("progress")
    best = progress.get("best_step") if isinstance(progress, dict) else None
    if which == "last" or not isinstance(best, int) or best == last.step:
        return last
    try:
        return load_checkpoint(run.checkpoints, best, run_id=made_as)
    except CheckpointError as error:
        warn(f"{error}\nThe last checkpoint, of step {last.step}, is used instead of the best.")
        return last


def check_saved(run: Run, experiment: Experiment | None = None) -> None:
    """Raises CheckpointError, with what to do, for a run that never came to its first checkpoint."""
    if list_steps(run.checkpoints):
        return
    saving = (experiment or run_experiment(run)).checkpoints.save
    if saving and any(run.checkpoints.glob(".bad-*")):
        why = "those it had were damaged, and are set aside there as .bad-…"
    elif saving:
        why = "it ended before its first was saved"
    else:
        why = "it was trained with --no-save"
    again = f"To train it again from the start: {train_again(run)}"
    raise CheckpointError(f"there is no checkpoint of run {run.id}: {why}.\n{again}")


def train_again(run: Run) -> str:
    """The command that trains a run's experiment again, as a new run beside it."""
    words = ["gptkit", "train", str(run.experiment_file)]
    if run.path.parent != DEFAULT_RUNS_FOLDER:
        words += ["--runs-dir", str(run.path.parent)]
    with suppress(CheckpointError):
        source = run.record().get("loaded_from")
        if isinstance(source, dict) and isinstance(source.get("run"), str):
            words += ["--load", source["run"]]
    return shlex.join(words)


def recorded_id(run: Run) -> str:
    """The id that a run was made with, which its checkpoints carry: its folder may have been renamed."""
    with suppress(CheckpointError):
        made_as = run.record().get("id")
        if isinstance(made_as, str):
            return made_as
    return run.id


def run_experiment(run: Run) -> Experiment:
    """The experiment that a run recorded.

    Raises CheckpointError where its file is damaged, PluginError, which says what to install.
    """
    refuse_special_files(run)
    try:
        return load_recorded(run.experiment_file)
    except PluginError as error:
        remedy = what_to_install(_record_or_nothing(run), error.plugins)
        raise PluginError(f"{error}\n{remedy}".rstrip(), error.plugins) from error
    except UsageError as error:
        raise CheckpointError(f"the run's own experiment file is damaged: {error}") from error


def _record_or_nothing(run: Run) -> dict[str, Any]:
    with suppress(CheckpointError):
        return run.record()
    return {}


def _warn_of_changed_plugins(run: Run, experiment: Experiment, warn: Callable[[str], None]) -> None:
    """Another version may cut or place tokens otherwise than the weights have learnt it."""
    record = _record_or_nothing(run)
    for changed in changed_plugins(record, model_plugins(experiment)) or ():
        plugin = changed.plugin
        remedy = what_to_install(record, [(plugin.family, plugin.name)])
        warn(
            f"{plugin.name!r} is of {changed.now} here, but was of {changed.before} in training: "
            f"the model may write worse.\n{remedy}".rstrip()
        )


def run_tokenizer(run: Run, experiment: Experiment) -> Tokenizer:
    """The tokenizer that a run recorded. Raises CheckpointError where it does not describe one."""
    cls = registry.load(registry.TOKENIZERS, experiment.tokenizer.type)
    data: dict[str, Any] = run.tokenizer_json()
    try:
        tokenizer: Tokenizer = cls.from_json(data)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{run.path / 'tokenizer.json'} is no {experiment.tokenizer.type} tokenizer: {error}"
        ) from error
    return tokenizer


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of what a tokenizer says of itself: equal exactly where two tokenizers are the same."""
    return sha256(to_json(tokenizer.to_json()))


def check_tokenizer(run: Run, checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Raises CheckpointError where the checkpoint was trained with another tokenizer."""
    if checkpoint.state.get("tokenizer_sha256") != tokenizer_hash(tokenizer):
        raise CheckpointError(
            f"the tokenizer of run {run.id} is not the one that step {checkpoint.step} was trained with; "
            "put the run's own tokenizer.json back."
        )
