"""Train and resume: text, tokenizer, model, run folder and loop put together.

In: a checked experiment, or a run. Out: the run's folder, and events to a listener on the way. Knows nothing
of command lines or terminals.
"""

from __future__ import annotations

import json
import random
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

from gptkit import events
from gptkit.backend import Backend, choose_backend, computing
from gptkit.data.corpus import Corpus, build_corpus
from gptkit.errors import CheckpointError, ExperimentError, PluginError, UsageError
from gptkit.experiment import Experiment, ModelSettings, PluginTable, to_toml
from gptkit.files import disk_errors
from gptkit.model.build import build_model_for, build_new_model, load_weights
from gptkit.plugins import Tokenizer, registry
from gptkit.runs import Process, Run, create_run, lock_run
from gptkit.runs.checkpoint import Checkpoint, clear_temporaries, newest_checkpoint, set_aside
from gptkit.runs.environment import new_trackers, trackers_again
from gptkit.runs.record import LoadedFrom
from gptkit.tracking import ChosenTracker
from gptkit.training.origin import ResumedRun, new_record, take_up, target_step
from gptkit.training.session import HERE, RunContext, Session, TrainingResult
from gptkit.training.setup import check_memory, out_of_memory, training_flops
from gptkit.training.text import LoadedText, obtain_text, telling
from gptkit.words import quote_characters


def train_run(
    experiment: Experiment,
    around: RunContext = HERE,
    *,
    stop_at: int | None = None,
    load_from: Run | None = None,
) -> TrainingResult:
    """Trains a new run, to max_steps or `stop_at`. With `load_from` it starts from that run's weights.

    Raises a GptkitError of the kind that fits; nothing is written before the text, the tokenizer and the
    model are known to be usable.
    """
    source = source_of(load_from, experiment) if load_from else None
    trackers = new_trackers(experiment)
    obtained = obtain_text(experiment.data, around.folders, around.listener)
    corpus = corpus_of(experiment, obtained.text, source, around.listener)
    experiment = _resolve(experiment, obtained, corpus, source)
    flops = training_flops(experiment, corpus.tokenizer.vocab_size)
    backend = choose_backend(experiment.training, flops)
    with new_run(RunSetup(experiment, obtained, corpus, backend, source, trackers), around) as session:
        return session.run_to(stop_at, target_step(experiment))


@dataclass(frozen=True)
class RunSetup:
    """All that a new run begins with. The experiment is resolved."""

    experiment: Experiment
    obtained: LoadedText
    corpus: Corpus
    backend: Backend
    source: Source | None
    trackers: Sequence[ChosenTracker] = ()


@contextmanager
def new_run(beginning: RunSetup, around: RunContext, *, rerun_of: str | None = None) -> Iterator[Session]:
    """A run that is about to make its first step, locked while it trains."""
    experiment, corpus, backend = beginning.experiment, beginning.corpus, beginning.backend
    source = beginning.source
    with computing(backend), out_of_memory(experiment):
        check_memory(experiment, corpus.tokenizer.vocab_size)
        model = build_new_model(experiment, corpus.tokenizer.vocab_size, int(experiment.seed))
        if source:
            load_weights(model, source.checkpoint.model, f"run {source.run.id}")
        run = create_run(around.runs_folder, stem=run_stem(experiment), experiment_toml=to_toml(experiment))
        with lock_run(run):
            run.write_tokenizer(corpus.tokenizer)
            loaded_from = LoadedFrom(run=source.run.id, step=source.checkpoint.step) if source else None
            record = new_record(
                run,
                experiment,
                beginning.obtained,
                corpus,
                backend,
                around.command,
                loaded_from,
                beginning.trackers,
            )
            if rerun_of is not None:
                record.rerun_of = rerun_of
            run.write_record(record)
            yield Session(
                run, experiment, corpus, backend, model, record, around, trackers=beginning.trackers
            )


def resume_run(
    run: Run,
    around: RunContext = HERE,
    *,
    steps: int | None = None,
    stop_at: int | None = None,
    require_exact: bool = False,
) -> TrainingResult:
    """Goes on in the same run, to its end, to the `steps` given now or earlier, or to `stop_at`.

    Raises CheckpointError where no checkpoint verifies, DataError where the text is not the run's any more,
    PluginError where it would not come out the same, bit for bit, and `require_exact` asks for that.
    """
    run.refuse_special_files()
    with lock_run(run):
        taken = take_up(run, around.folders, around.listener)
        experiment = taken.experiment
        inexact = taken.differences
        if experiment.training.minutes is not None:
            inexact += ("the schedule follows the clock",)
        if inexact and require_exact:
            raise PluginError(
                f"run {run.id} would not come out the same, bit for bit: {', '.join(inexact)}. "
                "Without --require-exact it goes on all the same."
            )
        for folder in (run.path, run.checkpoints, run.samples):
            clear_temporaries(folder)
        run.metrics_log.drop_torn_line()
        run.require_checkpoint(experiment)
        checkpoint = newest_checkpoint(
            run.checkpoints, run_id=run.recorded_id, on_bad=_set_aside(run, around.listener)
        )
        run.check_tokenizer(checkpoint, taken.tokenizer)
        final = _final_step(taken, checkpoint.step, steps)
        if stop_at is not None and stop_at < checkpoint.step:
            raise UsageError(
                f"run {run.id} is at step {checkpoint.step} already, past --stop-at {stop_at}; give more."
            )
        replayed = max(0, run.metrics_log.last_step() - checkpoint.step)
        around.listener(events.ResumeChecked(checkpoint.step, inexact, replayed))
        trackers = trackers_again(
            experiment, taken.record, lambda message: around.listener(events.Warned(message))
        )
        record = taken.record
        record.target_step, record.process = final, Process.current()
        with computing(taken.backend), out_of_memory(experiment):
            model = build_model_for(experiment, taken.tokenizer.vocab_size, checkpoint.model, f"run {run.id}")
            session = Session(
                run,
                experiment,
                taken.corpus,
                taken.backend,
                model,
                record,
                around,
                resumed=checkpoint,
                trackers=trackers,
            )
            if steps is not None:  # asked to go on, a run that was stopped early does
                session.trainer.progress.bad_evals = 0
            return session.run_to(stop_at, final)


@dataclass(frozen=True)
class Source:
    """The run that a new one starts from."""

    run: Run
    experiment: Experiment
    tokenizer: Tokenizer
    checkpoint: Checkpoint


_MAY_DIFFER = ("dropout", "attention_dropout", "init")


def source_of(run: Run, experiment: Experiment, which: str = "best") -> Source:
    """The checkpoint of `run` to start from. Raises UsageError where it does not fit `experiment`'s model."""
    theirs = run.experiment()
    names = [name for name in ModelSettings.model_fields if name not in _MAY_DIFFER]
    said = [(name, _as_set(theirs.model, name), _as_set(experiment.model, name)) for name in names]
    if different := [(name, there, here) for name, there, here in said if there != here]:
        differences = "; ".join(
            f"model.{name} is {there} there, {here} here" for name, there, here in different
        )
        flags = " ".join("--set " + shlex.quote(f"model.{name}={there}") for name, there, _ in different)
        raise UsageError(f"the weights of {run.id} do not fit: {differences}.\nTo set the same here: {flags}")
    return Source(run, theirs, run.tokenizer(theirs), run.checkpoint(which))


def _as_set(settings: ModelSettings, name: str) -> str:
    """A field as --set takes it."""
    value = getattr(settings, name)
    if not isinstance(value, PluginTable):
        return value if isinstance(value, str) else json.dumps(value)
    options = [f"{key} = {json.dumps(option)}" for key, option in value.options.items()]
    return f"{{ {', '.join([f'type = {json.dumps(value.type)}', *options])} }}" if options else value.type


def corpus_of(experiment: Experiment, text: str, source: Source | None, listener: events.Listener) -> Corpus:
    """The text, tokenized with the source's tokenizer or with a new one."""
    if source:
        tokenizer: Any = source.tokenizer
        options = None
    else:
        tokenizer = registry.load(registry.TOKENIZERS, experiment.tokenizer.type)
        options = tokenizer.Options.model_validate(experiment.tokenizer.options)
    return build_corpus(
        text,
        tokenizer,
        options=options,
        progress=telling(listener, "training the tokenizer"),
        tokenizing=telling(listener, "tokenizing the text"),
        val_fraction=experiment.data.val_fraction,
        context_length=experiment.model.context_length,
    )


def _resolve(
    experiment: Experiment, obtained: LoadedText, corpus: Corpus, source: Source | None
) -> Experiment:
    """The experiment as it will be recorded: what was chosen or found out is now said."""
    training = experiment.training
    if training.epochs is not None:
        steps = ceil(training.epochs * len(corpus.train) / experiment.tokens_per_step)
        training = training.model_copy(update={"max_steps": max(1, steps), "epochs": None})
    sampling = experiment.sampling
    if unknown := corpus.tokenizer.unknown_characters(sampling.prompt):
        if "prompt" in sampling.model_fields_set:
            unknown = quote_characters(unknown)
            problem = f"sampling.prompt has characters that are not in the text: {unknown}; leave them out"
            raise ExperimentError(problem, field="sampling.prompt")
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


def _set_aside(run: Run, listener: events.Listener) -> Callable[[int, CheckpointError], None]:
    def aside(step: int, error: CheckpointError) -> None:
        with disk_errors(f"setting aside step {step}"):
            path = set_aside(run.checkpoints, step)
        listener(events.Warned(f"{error}\nIt was set aside as {path.name}; the one before it is used."))

    return aside


def _final_step(taken: ResumedRun, at: int, steps: int | None) -> int | None:
    """The step that the run goes on to; None where the clock decides.

    Raises UsageError for `steps` that it is past, or that are before the end of its schedule.
    """
    run, training = taken.run, taken.experiment.training
    scheduled = target_step(taken.experiment)
    if steps is None:
        return None if scheduled is None else max(scheduled, taken.record.target_step or 0)
    if scheduled is None:
        raise UsageError(
            f"run {run.id} trains for {training.minutes:g} minutes, and its schedule ends with them.\n"
            f"To train its model further, start a new run: gptkit train EXPERIMENT --load {run.id}"
        )
    if steps < at:
        raise UsageError(f"run {run.id} is at step {at} already, past --steps {steps}; give more than {at}.")
    if steps < scheduled:
        raise UsageError(
            f"--steps {steps} is before step {scheduled}, where the schedule of run {run.id} ends. "
            f"To stop there: --stop-at {steps}"
        )
    return steps
