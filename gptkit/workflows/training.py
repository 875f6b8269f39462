"""Train and resume: text, tokenizer, model, run folder and loop put together.

In: a checked experiment, or a run. Out: the run's folder, and events to a listener on the way. Knows nothing
of command lines or terminals.
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from math import ceil
from typing import Any

from gptkit import events
from gptkit.backend import (
    MAX_THREADS,
    Backend,
    choose_backend,
    choose_device,
    computing,
    fingerprint,
    no_compiler,
)
from gptkit.checkpoint import Checkpoint, clear_temporaries, newest_checkpoint, set_aside
from gptkit.errors import CheckpointError, DataError, ExperimentError, UsageError
from gptkit.experiment import Experiment, ModelSettings, PluginTable, to_toml
from gptkit.files import disk_errors
from gptkit.native import build_key
from gptkit.plugins import Tokenizer, registry
from gptkit.runs import RunFolder, create_run, drop_torn_line, lock_run, this_process
from gptkit.text.corpus import Corpus, build_corpus, measure_text, quote_characters
from gptkit.workflows.building import (
    build_model_for,
    build_new_model,
    load_weights,
    out_of_memory,
    training_flops,
)
from gptkit.workflows.data import Obtained, obtain_text, recorded_text
from gptkit.workflows.reading import (
    check_tokenizer,
    read_checkpoint,
    recorded_id,
    run_experiment,
    run_tokenizer,
    tokenizer_hash,
)
from gptkit.workflows.session import HERE, Session, Surroundings, Trained


def train_run(
    experiment: Experiment,
    around: Surroundings = HERE,
    *,
    stop_at: int | None = None,
    load_from: RunFolder | None = None,
) -> Trained:
    """Trains a new run, to max_steps or `stop_at`. With `load_from` it starts from that run's weights.

    Raises a GptkitError of the kind that fits; nothing is written before the text, the tokenizer and the
    model are known to be usable.
    """
    source = _source(load_from, experiment) if load_from else None
    obtained = obtain_text(experiment.data, around.folders, around.listener)
    corpus = _corpus(experiment, obtained.text, source)
    experiment = _resolve(experiment, obtained, corpus, source)
    vocab_size = corpus.tokenizer.vocab_size
    backend = choose_backend(experiment.training, training_flops(experiment, vocab_size))
    seed = int(experiment.seed)
    with computing(backend), out_of_memory(experiment):
        model = build_new_model(experiment, vocab_size, seed)
        if source:
            load_weights(model, source.checkpoint.model, f"run {source.run.id}")
        run = create_run(around.runs_folder, stem=run_stem(experiment), experiment_toml=to_toml(experiment))
        with lock_run(run):
            run.write_tokenizer(corpus.tokenizer.to_json())
            record = _new_record(run, experiment, obtained, corpus, backend, around, source)
            run.write_record(record)
            session = Session(run, experiment, corpus, backend, model, record, around)
            return session.run_to(stop_at if stop_at is not None else experiment.training.max_steps)


def resume_run(
    run: RunFolder,
    around: Surroundings = HERE,
    *,
    steps: int | None = None,
    stop_at: int | None = None,
) -> Trained:
    """Goes on in the same run, to max_steps, to the `steps` given now or earlier, or to `stop_at`.

    Raises CheckpointError where no checkpoint verifies, DataError where the text is not the run's any more.
    """
    experiment = run_experiment(run)
    tokenizer = run_tokenizer(run, experiment)
    with lock_run(run):
        record = run.record()
        text = recorded_text(experiment.data, around.folders)
        _same_text(run, record, measure_text(text)[1])
        corpus = build_corpus(
            text,
            tokenizer,
            val_fraction=experiment.data.val_fraction,
            context_length=experiment.model.context_length,
        )
        clear_temporaries(run.checkpoints)
        drop_torn_line(run)
        checkpoint = newest_checkpoint(
            run.checkpoints, run_id=recorded_id(run), on_bad=_set_aside(run, around.listener)
        )
        check_tokenizer(run, checkpoint, tokenizer)
        backend = _recorded_backend(experiment, record, tokenizer.vocab_size)
        difference = _differences(record.get("environment"), fingerprint(backend))
        final = _final_step(run, experiment, record, checkpoint.step, steps)
        if stop_at is not None and stop_at < checkpoint.step:
            raise UsageError(f"run {run.id} is at step {checkpoint.step} already, past --stop-at {stop_at}.")
        around.listener(events.ResumeChecked(checkpoint.step, difference))
        record |= {"target_step": final, "process": this_process()}
        with computing(backend), out_of_memory(experiment):
            model = build_model_for(experiment, tokenizer.vocab_size, checkpoint.model, f"run {run.id}")
            session = Session(run, experiment, corpus, backend, model, record, around, resumed=checkpoint)
            return session.run_to(min(stop_at, final) if stop_at is not None else final, final)


@dataclass(frozen=True)
class _Source:
    """The run that a new one starts from."""

    run: RunFolder
    experiment: Experiment
    tokenizer: Tokenizer
    checkpoint: Checkpoint


def _source(run: RunFolder, experiment: Experiment) -> _Source:
    """Raises UsageError where the weights of `run` do not fit the model of `experiment`."""
    theirs = run_experiment(run)
    different = [
        f"model.{name} is {getattr(theirs.model, name)!r} there, {getattr(experiment.model, name)!r} here"
        for name in ModelSettings.model_fields
        if name not in ("dropout", "attention_dropout", "init")
        and getattr(theirs.model, name) != getattr(experiment.model, name)
    ]
    if different:
        raise UsageError(f"the weights of {run.id} do not fit: {'; '.join(different)}. Set the same here.")
    return _Source(run, theirs, run_tokenizer(run, theirs), read_checkpoint(run, "best"))


def _corpus(experiment: Experiment, text: str, source: _Source | None) -> Corpus:
    """The text, tokenized with the source's tokenizer or with a new one."""
    if source:
        tokenizer: Any = source.tokenizer
        options = None
    else:
        tokenizer = registry.load(registry.TOKENIZERS, experiment.tokenizer.type).cls
        options = tokenizer.Options.model_validate(experiment.tokenizer.options)
    return build_corpus(
        text,
        tokenizer,
        options=options,
        val_fraction=experiment.data.val_fraction,
        context_length=experiment.model.context_length,
    )


def _resolve(
    experiment: Experiment, obtained: Obtained, corpus: Corpus, source: _Source | None
) -> Experiment:
    """The experiment as it will be recorded: what was chosen or found out is now said."""
    training = experiment.training
    if training.epochs is not None:
        steps = ceil(training.epochs * len(corpus.train) / experiment.tokens_per_step)
        training = training.model_copy(update={"max_steps": max(1, steps), "epochs": None})
    sampling = experiment.sampling
    if unknown := corpus.tokenizer.unknown_characters(sampling.prompt):
        if "prompt" in sampling.model_fields_set:
            raise ExperimentError(
                "the experiment",
                [f"sampling.prompt has characters that are not in the text: {quote_characters(unknown)}"],
            )
        sampling = sampling.model_copy(update={"prompt": obtained.text[0]})
    return experiment.model_copy(
        update={
            "seed": random.SystemRandom().randrange(2**31)
            if experiment.seed == "random"
            else experiment.seed,
            "data": experiment.data.model_copy(update={"dataset": obtained.used, "fallback": None}),
            "tokenizer": source.experiment.tokenizer if source else experiment.tokenizer,
            "training": training,
            "sampling": sampling,
        }
    )


def run_stem(experiment: Experiment) -> str:
    """A run's id without its time: name, context, width, heads, layers."""
    model = experiment.model
    return f"{experiment.name}.c{model.context_length}.e{model.n_embd}.h{model.n_head}.b{model.n_layer}"


def _new_record(
    run: RunFolder,
    experiment: Experiment,
    obtained: Obtained,
    corpus: Corpus,
    backend: Backend,
    around: Surroundings,
    source: _Source | None,
) -> dict[str, Any]:
    """run.json as it is before the first step."""
    model, optimizer = experiment.model, experiment.optimizer
    record: dict[str, Any] = {
        "format": 1,
        "id": run.id,
        "name": experiment.name,
        "status": "starting",
        "started": datetime.now().astimezone().isoformat(timespec="microseconds"),
        "command": shlex.join(around.command),
        "process": this_process(),
        "target_step": experiment.training.max_steps,
        "dataset": {
            "title": obtained.title,
            "requested": _table(obtained.requested),
            "used": _table(obtained.used),
            "characters": corpus.characters,
            "sha256": corpus.text_sha256,
            "facts": obtained.facts,
        },
        "tokenizer": {
            "type": experiment.tokenizer.type,
            "vocab_size": corpus.tokenizer.vocab_size,
            "sha256": tokenizer_hash(corpus.tokenizer),
            "train_tokens": len(corpus.train),
            "val_tokens": len(corpus.val),
        },
        "hyperparameters": {
            "context_length": model.context_length,
            "n_embd": model.n_embd,
            "n_head": model.n_head,
            "n_layer": model.n_layer,
            "dropout": model.dropout,
            "position": model.position.type,
            "batch_size": experiment.training.batch_size,
            "optimizer": optimizer.type,
            "learning_rate": optimizer.learning_rate,
        },
        "plugins": [asdict(origin) for origin in _plugins(experiment)],
        "environment": fingerprint(backend),
    }
    if source:
        record["loaded_from"] = {"run": source.run.id, "step": source.checkpoint.step}
    return record


def _table(table: PluginTable) -> dict[str, Any]:
    return {"type": table.type, **table.options}


def _plugins(experiment: Experiment) -> list[registry.Provenance]:
    return [
        registry.provenance(registry.TOKENIZERS, experiment.tokenizer.type),
        registry.provenance(registry.POSITIONS, experiment.model.position.type),
        registry.provenance(registry.DATASETS, experiment.data.dataset.type),
    ]


def _same_text(run: RunFolder, record: dict[str, Any], sha256: str) -> None:
    dataset = record.get("dataset")
    recorded = dataset.get("sha256") if isinstance(dataset, dict) else "none recorded"
    if recorded != sha256:
        raise DataError(
            f"the text of run {run.id} has changed: it had SHA-256 {recorded}, now {sha256}.\n"
            "Put the old text back ('gptkit datasets fetch NAME --repair' for one that is downloaded), "
            "or train a new run."
        )


def _recorded_backend(experiment: Experiment, record: dict[str, Any], vocab_size: int) -> Backend:
    """How the run computed so far, as far as this machine can; else what it would choose now."""
    was = record.get("environment", {})
    chosen = choose_backend(experiment.training, training_flops(experiment, vocab_size))
    try:
        recorded = Backend(
            str(was["device"]),
            str(was["precision"]),
            int(was["threads"]),
            bool(was["compile"]) and not no_compiler(str(was["device"])),
            build_key() if was["native"] else "",
        )
        here = recorded.device == choose_device(recorded.device)
        if here and recorded.precision in ("fp32", "bf16") and 1 <= recorded.threads <= MAX_THREADS:
            return recorded
    except (KeyError, TypeError, ValueError, UsageError):
        pass
    return chosen


def _differences(was: dict[str, Any] | None, now: dict[str, Any]) -> tuple[str, ...]:
    """What differs from where the run was trained before, each as 'threads 2 -> 4'; nothing: exact."""
    if not isinstance(was, dict):
        return ("environment not recorded",)
    return tuple(f"{key} {was.get(key)} -> {value}" for key, value in now.items() if was.get(key) != value)


def _set_aside(run: RunFolder, listener: events.Listener) -> Callable[[int, CheckpointError], None]:
    def aside(step: int, error: CheckpointError) -> None:
        with disk_errors(f"setting aside step {step}"):
            path = set_aside(run.checkpoints, step)
        listener(events.Warned(f"{error}\nIt was set aside as {path.name}; the one before it is used."))

    return aside


def _final_step(
    run: RunFolder, experiment: Experiment, record: dict[str, Any], at: int, steps: int | None
) -> int:
    """The step that the run goes on to. Raises UsageError for `steps` that it is past, or stops short of."""
    scheduled = experiment.training.max_steps
    if steps is None:
        return max(scheduled, _whole(record.get("target_step")))
    if steps < at:
        raise UsageError(f"run {run.id} is at step {at} already, past --steps {steps}.")
    if steps < scheduled:
        raise UsageError(
            f"--steps {steps} is before step {scheduled}, where the schedule of run {run.id} ends. "
            f"To stop there: --stop-at {steps}"
        )
    return steps


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
