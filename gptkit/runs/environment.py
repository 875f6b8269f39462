"""Experiment, environment, data and plugin versions: recorded when a run starts, compared when it is resumed.

Input: a run's record and its experiment. Output: what to record, what differs, what to install; or an error
where something differs that nobody asked for. A package is named only where its name and version are well
formed, since they end up in a command that a person may paste.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.utils import InvalidName, canonicalize_name
from packaging.version import InvalidVersion, Version

from gptkit.errors import CheckpointError, DataError, PluginError, UsageError
from gptkit.experiment.identity import (
    BACKEND,
    Change,
    changes_recorded_losses,
    changes_weights,
    differences,
    hash_of,
    is_set_by,
    keys_of,
    values_of,
    with_values,
)
from gptkit.experiment.load import load_recorded, read_toml
from gptkit.experiment.schema import Experiment
from gptkit.plugins import registry
from gptkit.runs.record import (
    ChangedField,
    Environment,
    PluginOrigin,
    Resumed,
    RunRecord,
    plain_tables,
)
from gptkit.tracking import ChosenTracker, choose_tracker

if TYPE_CHECKING:
    from gptkit.backend import Backend
    from gptkit.runs.checkpoint import Checkpoint

_MAX_NAME = 100  # characters of a package's name or version
_MAX_CHANGES = 8  # named in a message


# The experiment


def record_experiment(record: RunRecord, experiment: Experiment) -> None:
    """Records the identity of the run: what its steps compute is a function of it."""
    record.experiment = values_of(experiment)
    record.experiment_sha256 = hash_of(record.experiment)


def experiment_changes(
    file: Path, record: RunRecord, experiment: Experiment, set_keys: Collection[str] = ()
) -> tuple[Change, ...]:
    """What differs in `experiment` from what was recorded of it.

    `set_keys` are the keys that are set now, over what the run's own experiment file has. A run of a version
    that recorded no experiment is compared with that file.
    """
    recorded = record.experiment
    if recorded is None:
        recorded = values_of(load_recorded(file)) if set_keys else None
    now = values_of(experiment)
    if recorded is None or hash_of(now) == hash_of(recorded):
        return ()
    stated = keys_of(read_toml(file)[1])
    return tuple(
        change
        for change in differences(recorded, now)
        if change.old is not None or change.key in stated or is_set_by(change, set_keys)
    )


def refuse_changes(
    file: Path, changes: Sequence[Change], experiment: Experiment, set_keys: Container[str] = ()
) -> None:
    """Raises CheckpointError for changes of weights that were not set on purpose.

    `file` is the run's own experiment file.
    """
    now = values_of(experiment)
    found = [change for change in changes if changes_weights(change, now) and not is_set_by(change, set_keys)]
    if found:
        wanted = [word for change in found for word in ("--set", change.override)]
        raise CheckpointError(
            f"{file} is not what run {file.parent.name} was trained with: {list_changes(found)}.\n"
            "Put the recorded values back, or, to train on with the new ones: "
            f"{shlex.join(['gptkit', 'resume', str(file.parent), *wanted])}"
        )


def refuse_foreign_checkpoint(run_id: str, record: RunRecord, checkpoint: Checkpoint) -> None:
    """Raises CheckpointError if a checkpoint was trained with another experiment than the run recorded."""
    trained = plain_tables(checkpoint.state.get("experiment"))
    if trained is None or record.experiment is None:
        return
    recorded = experiment_at(record, checkpoint.step)
    found = [change for change in differences(trained, recorded) if changes_weights(change, recorded)]
    if found:
        raise CheckpointError(
            f"step {checkpoint.step} of run {run_id} was not trained with the experiment that run.json has: "
            f"{list_changes(found)}"
        )


def changed_later(record: RunRecord, step: int) -> tuple[str, ...]:
    """Changes that the run was resumed with after a step from which it now continues."""
    return tuple(
        f"{Change(change.field or '', change.old, change.new)} from step {step + 1}, not {resumed.step + 1}"
        for resumed in record.resumed
        if resumed.step is not None and resumed.step > step
        for change in resumed.changes
    )


def record_resumed(
    record: RunRecord,
    experiment: Experiment,
    changes: Sequence[Change],
    differences: Sequence[str],
    environment: Mapping[str, Any],
    *,
    step: int,
) -> None:
    """Records that the run continues after `step`, and what is no longer as it was."""
    now = values_of(experiment)
    kept = [resumed for resumed in record.resumed if resumed.step is not None and resumed.step < step]
    changed = [change for resumed in record.resumed if resumed not in kept for change in resumed.changes]
    changed += [
        ChangedField(field=change.key, old=change.old, new=change.new)
        for change in changes
        if changes_weights(change, now) or changes_recorded_losses(change)
    ]
    record.resumed = [*kept, Resumed(step=step, changes=changed, differences=list(differences))]
    set_now = {BACKEND[change.key] for change in changes if change.key in BACKEND}
    if record.environment is not None and set_now:
        was = record.environment.model_dump(exclude_unset=True)
        chosen = {key: environment[key] for key in (*set_now, "native")}
        record.environment = Environment.model_validate(was | chosen)
    record_experiment(record, experiment)


def experiment_at(record: RunRecord, step: int) -> dict[str, Any]:
    """The recorded experiment as it was when the checkpoint of `step` was saved."""
    values = record.experiment or {}
    for resumed in reversed(record.resumed):
        if resumed.step is not None and resumed.step >= step:
            values = with_values(values, {change.field or "": change.old for change in resumed.changes})
    return values


def list_changes(changes: Sequence[Change]) -> str:
    """`model.dropout 0.1 -> 0.2, seed 1 -> 2 and 3 more`"""
    shown = ", ".join(map(str, changes[:_MAX_CHANGES]))
    more = len(changes) - _MAX_CHANGES
    return f"{shown} and {more} more" if more > 0 else shown


# Plugins


def model_plugins(experiment: Experiment) -> list[registry.Plugin]:
    """The plugins that a model is built from. Raises PluginError."""
    return [
        registry.find(registry.TOKENIZERS, experiment.tokenizer.type),
        registry.find(registry.POSITIONS, experiment.model.position.type),
    ]


def all_plugins(experiment: Experiment) -> list[registry.Plugin]:
    """Every plugin that a run depends on; its trackers do not count. Raises PluginError."""
    texts = [table for table in (experiment.data.dataset, experiment.data.val) if table is not None]
    names = dict.fromkeys(table.type for table in texts)
    return [*model_plugins(experiment), *(registry.find(registry.DATASETS, name) for name in names)]


def plugin_origins(experiment: Experiment, trackers: Sequence[ChosenTracker]) -> list[PluginOrigin]:
    """What is recorded of the plugins, trackers included. Raises PluginError."""
    found = [registry.find(registry.TRACKERS, tracker.name) for tracker in trackers]
    origins = [PluginOrigin.model_validate(one.to_json()) for one in (*all_plugins(experiment), *found)]
    for plugin, origin in zip(all_plugins(experiment), origins, strict=False):
        if code := _code_of(plugin):
            origin.code = code
    return origins


def _code_of(plugin: registry.Plugin) -> str:
    """Identifies the module of a positional encoding of another package, which may be changed without another
    version; "" for all else: gptkit's own code is part of the environment, and what a tokenizer or dataset
    returns is compared itself.
    """
    if plugin.family != registry.POSITIONS or plugin.distribution == registry.OWN:
        return ""
    from gptkit.backend import hash_of_code

    with suppress(ImportError, ValueError, OSError, SyntaxError):
        spec = find_spec(plugin.entry_point.module)
        if spec and spec.origin:
            file = Path(spec.origin)
            return hash_of_code(file.parent, [file.name])
    return ""


def new_trackers(experiment: Experiment) -> list[ChosenTracker]:
    """The trackers of a new run. Raises PluginError."""
    return [choose_tracker(name, value) for name, value in experiment.tracking.items() if value is not False]


def trackers_again(
    experiment: Experiment, record: RunRecord, warn: Callable[[str], None]
) -> list[ChosenTracker]:
    """The trackers of a run that is resumed; `warn` gets a message for each that cannot be loaded."""
    found = []
    for name, value in experiment.tracking.items():
        try:
            found += [choose_tracker(name, value)] if value is not False else []
        except PluginError as error:
            remedy = what_to_install(record, [(registry.TRACKERS, name)])
            warn(f"{error}\nThe run continues without it. {remedy}".rstrip())
    return found


def what_to_install(record: RunRecord, plugins: Sequence[tuple[str, str]]) -> str:
    """The packages that `plugins`, (family, name) each, came from, with the command for them; or ""."""
    recorded = _origins(record)
    known = [recorded[key] for key in plugins if key in recorded]
    packages = dict.fromkeys(filter(None, map(_package, known)))  # each once, in order
    if not packages:
        return ""
    *first, last = (f"{name} {version}" for name, version in packages)
    names = f"{', '.join(first)} and {last}" if first else last
    command = " ".join(f"{name}=={version}" for name, version in packages)
    return f"The run had {'it' if len(plugins) == 1 else 'them'} from {names}: pip install {command}"


def warn_of_changed_plugins(record: RunRecord, experiment: Experiment, warn: Callable[[str], None]) -> None:
    """`warn` gets a message for each plugin of the model of another version than in training: it may encode
    or place tokens differently from what the weights have learnt. Raises PluginError."""
    for plugin, before in _changed_plugins(record, model_plugins(experiment)):
        remedy = what_to_install(record, [(plugin.family, plugin.name)])
        warn(
            f"{plugin.name!r} is of {plugin.distribution} {plugin.version} here, but was of {before} in "
            f"training: the model may generate worse text.\n{remedy}".rstrip()
        )


def environment_differences(record: RunRecord, experiment: Experiment, backend: Backend) -> tuple[str, ...]:
    """Differences from the recorded environment, such as 'threads 2 -> 4'; empty: exact.

    Raises PluginError.
    """
    from gptkit.backend import RECORDED_SINCE_0_2, VARIABLES, fingerprint

    if record.environment is None:
        return ("environment not recorded",)
    before, now = record.environment.model_dump(exclude_unset=True), fingerprint(backend)
    before["processes"] = record.environment.processes or 1
    keys = [key for key in now if key not in VARIABLES and (key in before or key not in RECORDED_SINCE_0_2)]
    keys += VARIABLES if "code" in before else ()
    changed = [
        f"{key} {_shown(before.get(key))} -> {_shown(now.get(key))}"
        for key in keys
        if before.get(key) != now.get(key)
    ]
    if "code" not in before and before.get("precision") == "bf16" and not before.get("native"):
        changed.append("gradients summed in bf16 -> fp32")  # by torch, since 0.1.0
    if record.plugins is None:
        return (*changed, "plugins not recorded")
    return (
        *changed,
        *(
            f"{plugin.name} of {origin} -> {plugin.distribution} {plugin.version}"
            for plugin, origin in _changed_plugins(record, all_plugins(experiment))
        ),
    )


def _shown(value: object) -> str:
    return "not set" if value is None else str(value) or "none"


def recorded_backend(record: RunRecord, chosen: Backend, set_now: Container[str] = ()) -> Backend:
    """The backend that the run was trained with, where this machine has it; otherwise `chosen`.

    `set_now` are the fields of the experiment that were changed since, which count as they were chosen.
    """
    from gptkit.backend import DTYPES, MAX_THREADS, Backend, choose_device, no_compiler
    from gptkit.native import build_key

    was = record.environment
    if was is None or was.device is None or was.threads is None:
        return chosen
    if was.compile is None or was.native is None:
        return chosen
    if was.precision not in DTYPES or not 1 <= was.threads <= MAX_THREADS:
        return chosen
    if "training.backend" in set_now:
        return chosen
    try:
        if choose_device(was.device) != was.device:
            return chosen
    except UsageError:
        return chosen
    compiles = was.compile and not no_compiler(was.device)
    other_number = (was.processes or 1) != chosen.processes  # then each has another part of the threads
    return Backend(
        device=was.device,
        precision=chosen.precision if "training.precision" in set_now else was.precision,
        threads=chosen.threads if "training.threads" in set_now or other_number else was.threads,
        compile=chosen.compile if "training.compile" in set_now else compiles,
        native=build_key() if was.native else "",
        operations=was.operations,
        processes=chosen.processes,
    )


def check_tokens(record: RunRecord, sha256: str) -> None:
    """Raises CheckpointError if the recorded tokenizer encodes the text to other ids than it did."""
    recorded, kind = record.tokenizer.ids_sha256, record.tokenizer.type or ""
    if recorded is not None and recorded != sha256:
        remedy = what_to_install(record, [(registry.TOKENIZERS, kind)])
        raise CheckpointError(
            f"tokenizer {kind!r} encodes the text to other ids than when the run was trained: it, or a "
            f"package that it uses, has changed.\n{remedy or 'Install the versions of the training.'}"
        )


def check_text(
    record: RunRecord, run_id: str, sha256: str, facts: Mapping[str, Any], *, val: bool = False
) -> None:
    """Raises DataError if the text, or with `val` the val text, is no longer the one of the run.

    `facts` are those that the dataset has of the text now.
    """
    recorded = record.dataset.val_sha256 if val else record.dataset.sha256
    if recorded != sha256:
        raise DataError(
            f"the {'val ' if val else ''}text of run {run_id} has changed: "
            f"it had SHA-256 {recorded or 'none recorded'}, now {sha256}.\n"
            f"{'' if val else _files_then_and_now(record.dataset.facts, facts)}"
            "Put the old text back ('gptkit datasets fetch NAME --repair' for one that is downloaded), "
            "or train a new run."
        )


def _files_then_and_now(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """A line on the files of a text that has several, or beside which some are passed over."""
    if "files" not in now and "files" not in then:
        return ""
    files = f"Files now: {_files(now)}"
    if "files" in then:
        return f"{files}; before: {_files(then)}.\n"
    # The record of a version that kept no list, and found the files in another way
    passed_over = f"; passed over: {now['passed_over']}" if "passed_over" in now else ""
    return (
        f"{files}{passed_over}. gptkit 0.1.0 did not read endings in capitals, and read files that have two "
        "paths twice: move or copy them accordingly.\n"
    )


def _files(facts: Mapping[str, Any]) -> str:
    return f"{facts['files']} ({facts.get('read')})" if "files" in facts else "1"


def _origins(record: RunRecord) -> dict[tuple[str | None, str | None], PluginOrigin]:
    return {(origin.family, origin.name): origin for origin in record.plugins or ()}


def _changed_plugins(
    record: RunRecord, plugins: Sequence[registry.Plugin]
) -> list[tuple[registry.Plugin, str]]:
    """Plugins that came from another package or version, each with that; none if none are recorded.

    The built-in plugins have the version of gptkit, which is compared with the environment.
    """
    if record.plugins is None:
        return []
    recorded, changed = _origins(record), []
    for plugin in plugins:
        before = recorded.get((plugin.family, plugin.name))
        if before is None:
            changed.append((plugin, "an unrecorded package"))
            continue
        if before.code is not None and before.code != _code_of(plugin):
            changed.append((plugin, f"{' '.join(_package(before) or ())} with other code".strip()))
            continue
        both_builtin = before.distribution == plugin.distribution == registry.OWN
        same = (before.distribution, before.version) == (plugin.distribution, plugin.version)
        if not same and not both_builtin:
            changed.append((plugin, " ".join(_package(before) or ("an unknown package",))))
    return changed


def _package(origin: PluginOrigin) -> tuple[str, str] | None:
    """The name and version of a package where both are well formed, and safe in a shell."""
    name, version = origin.distribution or "", origin.version or ""
    if not all(word.isascii() and word.isprintable() and len(word) <= _MAX_NAME for word in (name, version)):
        return None
    try:
        canonicalize_name(name, validate=True)
        parsed = Version(version)
    except (InvalidName, InvalidVersion):
        return None
    # An epoch has a '!', and spellings such as ' v1' would have to be quoted
    return (name, version) if str(parsed) == version and not parsed.epoch else None
