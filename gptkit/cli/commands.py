"""What the commands do with what was parsed: call a workflow, render what comes of it."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptkit.cli.signals import StopFlag, stop_signals
from gptkit.cli.streams import tell, warn
from gptkit.errors import CheckpointError, RunInterruptedError, RunTerminatedError, StoppedError, UsageError
from gptkit.runs import find_run

_STOPPED: dict[str, type[StoppedError]] = {
    "interrupted": RunInterruptedError,
    "terminated": RunTerminatedError,
}


def train(
    experiment_file: Path,
    overrides: Callable[[], Sequence[tuple[str, Any]]],
    *,
    runs_dir: Path,
    data_dir: Path | None,
    stop_at: int | None,
    load: str | None,
    generate: int | None,
    quiet: bool,
    as_json: bool = False,
) -> None:
    """`overrides` imports, so it is called when signals raise no more: pydantic swallows what is raised."""
    with stop_signals() as stop:
        from gptkit.experiment import in_its_place, load_experiment
        from gptkit.training.start import train_run

        said = overrides()
        experiment = load_experiment(experiment_file, said)
        source = find_run(load, runs_dir) if load else None
        with in_its_place(experiment_file, said):
            _session(
                lambda around: train_run(experiment, around, stop_at=stop_at, load_from=source),
                stop=stop,
                runs_dir=runs_dir,
                data_dir=data_dir,
                quiet=quiet,
                as_json=as_json,
                then_generate=generate,
            )


def resume(
    run: str,
    *,
    steps: int | None,
    stop_at: int | None,
    require_exact: bool,
    runs_dir: Path,
    data_dir: Path | None,
    quiet: bool,
    as_json: bool = False,
) -> None:
    with stop_signals() as stop:
        from gptkit.training.start import resume_run

        folder = find_run(run, runs_dir)
        _session(
            lambda around: resume_run(
                folder, around, steps=steps, stop_at=stop_at, require_exact=require_exact
            ),
            stop=stop,
            runs_dir=runs_dir,
            data_dir=data_dir,
            quiet=quiet,
            as_json=as_json,
        )


def replay(run: str, *, runs_dir: Path, data_dir: Path | None, quiet: bool) -> None:
    """`resume --verify`."""
    with stop_signals() as stop:
        from gptkit.cli.display.runs import describe_replay
        from gptkit.cli.display.training import training_view
        from gptkit.data.catalog import data_folders
        from gptkit.reproduce.replay import replay_run
        from gptkit.training.session import RunContext

        folder = find_run(run, runs_dir)
        with training_view(quiet=quiet, stop_requested=stop) as view:
            around = RunContext(folders=data_folders(data_dir), listener=view, stop_requested=stop)
            replayed = replay_run(folder, around)
        if not replayed.identical:
            raise CheckpointError(describe_replay(replayed))
        if not quiet:
            print(describe_replay(replayed))


def rerun(run: str, *, runs_dir: Path, data_dir: Path | None, quiet: bool) -> None:
    with stop_signals() as stop:
        from gptkit.cli.display.runs import describe_rerun
        from gptkit.reproduce.rerun import Rerun, rerun_run

        folder, done = find_run(run, runs_dir), list[Rerun]()

        def work(around: Any) -> Any:
            done.append(rerun_run(folder, around))
            return done[0].trained

        _session(work, stop=stop, runs_dir=runs_dir, data_dir=data_dir, quiet=quiet)
        sameness = done[0].sameness
        if sameness and not sameness.identical:
            raise CheckpointError(describe_rerun(done[0]))
        if not quiet:
            print(describe_rerun(done[0]))


def verify(run: str, *, runs_dir: Path) -> None:
    from gptkit.cli.display.runs import show_finding
    from gptkit.reproduce.verify import verify_run

    folder, bad, things = find_run(run, runs_dir), 0, 0
    for finding in verify_run(folder):
        show_finding(finding)
        bad += finding.verdict == "bad"
        things += finding.verdict != "note"
    if bad:
        raise CheckpointError(
            f"of {things} things in run {folder.id}, {bad} {'is' if bad == 1 else 'are'} bad."
        )


def report(run: str, *, runs_dir: Path) -> None:
    from gptkit.report.run_page import write_report

    path = write_report(find_run(run, runs_dir))
    _write_path(path)


def _session(
    work: Any,
    *,
    stop: StopFlag,
    runs_dir: Path,
    data_dir: Path | None,
    quiet: bool,
    as_json: bool = False,
    then_generate: int | None = None,
) -> None:
    """Trains with a view of it, prints where the run is, and ends as the signal asked, if one came."""
    from gptkit.cli.display.training import training_view
    from gptkit.data.catalog import data_folders
    from gptkit.training.session import RunContext, TrainingResult
    from gptkit.training.writing import write_after

    with training_view(quiet=quiet, as_json=as_json, stop_requested=stop) as view:
        around = RunContext(
            runs_folder=runs_dir,
            folders=data_folders(data_dir),
            listener=view,
            stop_requested=stop,
            command=("gptkit", *sys.argv[1:]),
        )
        trained: TrainingResult = work(around)
    if then_generate is not None and not stop():
        text = write_after(trained, then_generate)
        if not quiet:
            _write_out(text + "\n")
    if quiet:
        _write_path(trained.run.path)
    if trained.status in _STOPPED:
        raise _STOPPED[trained.status](f"{trained.status} at step {trained.progress.step}, saved")


def generate(
    run: str,
    *,
    prompt: str | None,
    sampling: Mapping[str, tuple[str, Any]],
    num_samples: int,
    seed: int | None,
    checkpoint: str,
    unknown: str,
    echo: bool,
    backend: str | None,
    runs_dir: Path,
) -> None:
    """`sampling` has the flag and the value, None where it is not given, of each field."""
    if unknown not in ("error", "skip"):
        raise UsageError(f"--unknown {unknown!r}: expected error or skip.")
    text = _prompt_text(prompt)
    folder = find_run(run, runs_dir)
    from gptkit.experiment import FlagKey
    from gptkit.training.writing import open_writer

    given: dict[str, Any] = {
        FlagKey(field, _as_typed(flag, value)): value
        for field, (flag, value) in sampling.items()
        if value is not None
    }
    writer = open_writer(
        folder,
        checkpoint=checkpoint,
        backend=backend or "auto",
        prompt=text,
        sampling=given,
        skip_unknown=unknown == "skip",
        warn=warn,
    )
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    tell(f"{writer.title}; seed {seed}")
    started = time.monotonic()
    begin = writer.prompt if echo else ""
    if num_samples == 1:
        _write_out(begin)
        for _, piece in writer.write(seed=seed, num_samples=1):
            _write_out(piece)
    else:
        texts = [begin] * num_samples
        for number, piece in writer.write(seed=seed, num_samples=num_samples):
            texts[number] += piece
        for number, text in enumerate(texts):
            tell(f"sample {number + 1} of {num_samples}")
            _write_out(text if text.endswith("\n") else text + "\n")
    if sys.stdout.isatty():
        tell("")
    seconds = time.monotonic() - started
    speed = writer.tokens_written / max(seconds, 1e-9)
    tell(f"{writer.tokens_written} tokens in {seconds:.1f} s ({speed:,.0f} tokens/s)")


def _as_typed(flag: str, value: Any) -> str:
    return " ".join([flag, *map(repr, value)]) if isinstance(value, list) else f"{flag} {value}"


def _prompt_text(prompt: str | None) -> str | None:
    """The prompt as given, of standard input for '-', of a file for '@FILE'."""
    if prompt is None or not (prompt == "-" or prompt.startswith("@")):
        return prompt
    where = "standard input" if prompt == "-" else prompt[1:]
    try:
        data = sys.stdin.buffer.read() if prompt == "-" else Path(prompt[1:]).read_bytes()
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompt from {where} is not UTF-8 at byte {error.start}.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read the prompt from {where}: {reason}.") from None


def _write_out(text: str) -> None:
    """Exactly these characters on standard output, in UTF-8, at once."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()


def _write_path(path: Path) -> None:
    """A path in a line on standard output, byte for byte as the system has it."""
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(path) + os.linesep.encode())
    sys.stdout.buffer.flush()


def list_runs(
    runs_dir: Path, where: Sequence[str] = (), sort: str = "", *, reverse: bool = False, as_json: bool = False
) -> None:
    from gptkit.cli.display import runs as render_runs
    from gptkit.runs.select import select_runs

    runs = select_runs(runs_dir, where, sort, reverse)
    if as_json:
        render_runs.print_json([render_runs.listed(found, runs_dir) for found in runs])
    else:
        render_runs.show_runs(runs, runs_dir, chosen=bool(where))


def bench(
    experiment_file: Path | None, overrides: Sequence[tuple[str, Any]], against: str, *, as_json: bool
) -> None:
    from gptkit.bench.measure import benchmark
    from gptkit.cli.display import bench as render_bench
    from gptkit.experiment import experiment_from_dict, load_experiment

    if experiment_file is None:
        experiment = experiment_from_dict({}, overrides)
    else:
        experiment = load_experiment(experiment_file, overrides)
    render_bench.show(benchmark(experiment, against=against), as_json=as_json)
