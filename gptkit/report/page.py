"""The page of one run: report.html.

Input: a run, whose files may be damaged. Output: the page. What is missing or damaged is left out, with a
note. Everything is read through Run, RunRecord and Metrics.
"""

from __future__ import annotations

import shlex
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from gptkit.errors import CheckpointError, GptkitError, PluginError
from gptkit.events import RunStatus
from gptkit.experiment.fields import ExperimentField, option_fields
from gptkit.experiment.load import read_toml
from gptkit.plugins import registry
from gptkit.report.charts import Chart, Drawn, Mark, Series, draw
from gptkit.report.render import (
    MAX_ROWS,
    MAX_TEXT,
    Row,
    duration_text,
    moment_text,
    number_text,
    render,
    rows,
    text_of,
    toml_text,
    write_page,
)
from gptkit.runs import REPORT, Curves, Run, RunRecord, RunSummary, Sample
from gptkit.runs.record import TokenizerRecord
from gptkit.runs.summary import (
    PLUGIN_TABLES,
    Value,
    fields_by_key,
    plain_value,
    read_settings,
    summarize,
)

MAX_SAMPLE = 20_000  # characters
_MAX_EVALUATIONS = 100  # rows of the table of losses
_MAX_SETTINGS = 400  # an experiment has about 60
_NEWEST, _SPREAD = 10, 30  # samples: the newest, and some spread evenly over the rest
_PEEK = 120  # characters of a sample that are shown before it is opened
_UNIQUE = ("name", "seed")  # settings of which every run has its own

_CURVES = (
    "train_loss",
    "val_loss",
    "learning_rate",
    "adamw_learning_rate",
    "grad_norm",
    "tokens_per_second",
)
_ENDINGS = {
    RunStatus.FINISHED: "It reached its last step.",
    RunStatus.STOPPED: "It was asked to stop before its last step, and was saved.",
    RunStatus.INTERRUPTED: "It was interrupted (Ctrl-C, or SIGINT).",
    RunStatus.TERMINATED: "It was terminated by the system (SIGTERM, or its terminal was closed).",
    RunStatus.DIVERGED: "The loss or a gradient was not finite; the state of that step was not saved.",
    RunStatus.FAILED: "An error ended it.",
    RunStatus.IMPORTED: "Its weights were imported; it has no training of its own.",
    RunStatus.RUNNING: "It is being trained now; this page shows it up to its last logged step.",
    RunStatus.CRASHED: "Its process was killed, or it was copied while it trained.",
}


def write_report(run: Run) -> Path:
    """Writes the run's report.html and returns its path.

    Raises DiskError if it cannot be written, CheckpointError if something in the folder is a link.
    """
    run.refuse_special_files()
    path = run.path / REPORT
    write_page(path, run_page(run))
    return path


def run_page(run: Run) -> bytes:
    """The page of a run, in UTF-8."""
    notes: list[str] = []
    try:
        record = run.read_record()
    except CheckpointError as error:
        record = RunRecord()
        notes.append(str(error))
    curves = _curves(run, notes)
    summary = summarize(run, curves=curves)
    settings, settings_note = described_settings(run)
    samples, samples_note = chosen_samples(run)
    bits = _bits_per_nat(record, curves)
    return render(
        "run.html",
        title=run.id,
        status=str(summary.status),
        why=_why_it_ended(summary, record),
        notes=notes,
        key_values=_key_values(summary, record, curves, bits),
        charts=_charts(curves, bits),
        evaluations=_evaluations(curves, bits),
        samples=[(one, _peek(one.text)) for one in samples],
        samples_note=samples_note,
        sections=_sections(settings),
        different=[setting for setting in settings if setting.differs],
        settings_note=settings_note,
        data_rows=_data_rows(record),
        plugins=_plugin_rows(record),
        environment=rows(record.environment.model_dump().items()) if record.environment else [],
        commands=_commands(run, record),
        parent=run.path.absolute().parent.name,
    )


def _why_it_ended(summary: RunSummary, record: RunRecord) -> str:
    if record.reason:
        return f"Why it ended: {text_of(record.reason)}."
    return _ENDINGS.get(summary.status, "How it ended is not recorded.")


def _key_values(summary: RunSummary, record: RunRecord, curves: Curves, bits: float | None) -> list[Row]:
    train, val = curves["train_loss"], curves["val_loss"]
    step = record.step or curves.last_step
    best = f"{_loss(val.values[val.best], bits)}, at step {val.steps[val.best]:,}" if val else None
    speed = summary.tokens_per_second
    source = record.loaded_from
    return rows(
        [
            ("Best val loss", best),
            ("Last val loss", _loss(val.values[-1], bits) if val else None),
            ("Last train loss", _loss(train.values[-1], bits) if train else None),
            ("Steps", f"{step:,} of {record.target_step:,}" if record.target_step else step),
            ("Tokens trained on", record.tokens),
            ("Parameters", record.parameters),
            ("Training time", None if record.seconds is None else duration_text(record.seconds)),
            ("Tokens per second", None if speed is None else f"{speed:,.0f}"),
            ("Started", moment_text(record.started)),
            ("Ended", moment_text(record.ended)),
            ("Started from the weights of", source.run if source else None),
        ]
    )


# Curves


def _curves(run: Run, notes: list[str]) -> Curves:
    try:
        curves = run.metrics_log.curves(_CURVES)
    except OSError as error:
        notes.append(f"metrics.jsonl cannot be read: {error.strerror or error}.")
        return Curves()
    if curves.left_out:
        notes.append(f"{curves.left_out:,} lines of metrics.jsonl are damaged and were left out.")
    if curves.thinned:
        notes.append("Thinned out: of long curves, the lowest and highest value in each interval are shown.")
    return curves


def _bits_per_nat(record: RunRecord, curves: Curves) -> float | None:
    """Bits per byte for one nat per token in the val split; None if they are not recorded, or not valid."""
    if record.tokenizer.lossless is False:
        return None
    pairs = [(record.best_bits_per_byte, record.best_val_loss)]
    if val := curves["val_loss"]:
        pairs.insert(0, (val.bits_per_byte[-1], val.values[-1]))
    for bits, loss in pairs:
        if bits is not None and loss is not None and loss > 0 and 0 < bits / loss < 1e6:
            return bits / loss
    return None


def _loss(loss: float, bits: float | None) -> str:
    return number_text(loss) + (f" ({number_text(loss * bits)} bits per byte)" if bits else "")


def _charts(curves: Curves, bits: float | None) -> list[Drawn]:
    val = curves["val_loss"]
    title = "Loss (nats per token)" + (f"; times {bits:.4g}: bits per byte" if bits else "")
    losses = [
        Series.of(curves[name], label, color)
        for color, (name, label) in enumerate((("train_loss", "train loss"), ("val_loss", "val loss")))
    ]
    mark = None
    if val:
        mark = Mark(val.steps[val.best], val.values[val.best], f"best {number_text(val.values[val.best])}", 1)
    charts = [Chart("loss", title, losses, mark=mark)]
    for color, (name, title) in enumerate(
        (
            ("learning_rate", "Learning rate"),
            ("grad_norm", "Gradient norm, before clipping"),
            ("tokens_per_second", "Tokens per second"),
        ),
        start=2,
    ):
        series = [Series.of(curves[name], name.replace("_", " "), color)]
        if name == "learning_rate" and curves["adamw_learning_rate"]:
            series.append(Series.of(curves["adamw_learning_rate"], "of AdamW", color + 1))
        charts.append(Chart(name.replace("_", "-"), title, series))
    return [drawn for chart in charts if (drawn := draw(chart)) is not None]


def _evaluations(curves: Curves, bits: float | None) -> list[tuple[str, str, str, str]]:
    """Step, last logged train loss, val loss, bits per byte; evenly spread where there are many."""
    train, val = curves["train_loss"], curves["val_loss"]
    found = []
    for position in _spread(len(val), _MAX_EVALUATIONS):
        step, loss = val.steps[position], val.values[position]
        before = bisect_right(train.steps, step)
        found.append(
            (
                f"{step:,}",
                number_text(train.values[before - 1]) if before else "",
                number_text(loss),
                number_text(loss * bits) if bits else "",
            )
        )
    return found


def _spread(count: int, most: int) -> list[int]:
    """Positions of `count` things: all of them, or `most`, evenly spread from the first to the last."""
    if count <= most:
        return list(range(count))
    return [round(number * (count - 1) / (most - 1)) for number in range(most)]


# Samples


def chosen_samples(run: Run) -> tuple[list[Sample], str]:
    """The newest samples and some spread evenly over the rest, newest first; a note on those left out."""
    try:
        steps = run.sample_steps()
    except OSError as error:
        return [], f"The samples cannot be read: {error.strerror or error}."
    chosen, notes = steps, []
    if len(steps) > _NEWEST + _SPREAD:
        chosen = [steps[position] for position in _spread(len(steps) - _NEWEST, _SPREAD)] + steps[-_NEWEST:]
        notes.append(
            f"{len(chosen)} of {len(steps):,} samples are shown: the newest, and some spread evenly over "
            "the rest. All are in the folder samples/."
        )
    samples, unreadable = [], 0
    for step in reversed(chosen):
        try:
            samples.append(run.read_sample(step, max_characters=MAX_SAMPLE))
        except (OSError, ValueError):
            unreadable += 1
    if unreadable:
        notes.append(f"{unreadable} could not be read.")
    return samples, " ".join(notes)


def _peek(text: str) -> str:
    """The beginning of a sample, in one line."""
    words = " ".join(text[: 4 * _PEEK].split())
    return words[:_PEEK] + "…" if len(words) > _PEEK else words


# Settings


@dataclass(frozen=True)
class Setting:
    key: str  # dotted
    value: str
    default: str | None  # None: not known, or there is none
    differs: bool
    description: str


def described_settings(run: Run) -> tuple[list[Setting], str]:
    """The settings in the order of the file, and a note on what cannot be shown or compared, or ""."""
    settings = read_settings(run)
    if not settings:
        return [], _why_no_settings(run)
    fields, notes = fields_by_key(settings), []
    for key, family in PLUGIN_TABLES.items():
        if key not in settings:
            continue
        plugin = f"{registry.KINDS[family]} {str(settings[key])[:100]!r}"
        try:
            options = option_fields(registry.load(family, str(settings[key])).Options, key)
            fields |= {option.key: option for option in options}
        except PluginError:
            notes.append(f"The {plugin} is not installed, so its defaults are not known.")
        except Exception:  # in the plugin's code
            notes.append(f"The {plugin} fails to describe its options.")
    if len(settings) > _MAX_SETTINGS:
        notes.append(f"{len(settings) - _MAX_SETTINGS} more settings are left out.")
    described = [_described(key, value, fields.get(key)) for key, value in settings.items()]
    return described[:_MAX_SETTINGS], " ".join(notes)


def _why_no_settings(run: Run) -> str:
    if run.experiment_file.is_symlink():
        return f"{run.experiment_file.name} is a symbolic link, which is not followed."
    try:
        read_toml(run.experiment_file)
    except GptkitError as error:
        return str(error)
    return f"{run.experiment_file.name} has no settings."


def _described(key: str, value: Value, field: ExperimentField | None) -> Setting:
    if field is None or field.required or key in _UNIQUE:
        return Setting(key, toml_text(value), None, False, field.description if field else "")
    default = plain_value(field.default)
    differs = value != default or isinstance(value, bool) != isinstance(default, bool)
    return Setting(key, toml_text(value), toml_text(field.default), differs, field.description)


def _sections(settings: list[Setting]) -> dict[str, list[Setting]]:
    """Settings by table; those at the top of the file under ""."""
    sections: dict[str, list[Setting]] = {}
    for setting in settings:
        table, dot, _ = setting.key.partition(".")
        sections.setdefault(table[:100] if dot else "", []).append(setting)
    return sections


# What is recorded


def _data_rows(record: RunRecord) -> list[Row]:
    dataset, tokenizer = record.dataset, record.tokenizer
    return rows(
        [
            ("Dataset", dataset.title),
            ("As used", dataset.used if dataset.used != {"type": dataset.title} else None),
            ("As requested", dataset.requested if dataset.requested != dataset.used else None),
            ("Characters", dataset.characters),
            ("SHA-256 of the text", dataset.sha256),
            *list(dataset.facts.items())[:20],
            ("Tokenizer", tokenizer.type),
            ("Vocabulary", tokenizer.vocab_size),
            ("Tokens to train on", tokenizer.train_tokens),
            ("Tokens to evaluate on", tokenizer.val_tokens),
            ("SHA-256 of the tokenizer", tokenizer.sha256),
            ("Text that it does not return", _lost(tokenizer)),
        ]
    )


def _lost(tokenizer: TokenizerRecord) -> str | None:
    """What the tokenizer loses, and what follows from it."""
    if tokenizer.lossless is not False:
        return None
    much = f"{tokenizer.lost:.1%} of the characters" if tokenizer.lost is not None else "some characters"
    return f"{much}, such as {tokenizer.example}; so there are no bits per byte"


def _plugin_rows(record: RunRecord) -> list[tuple[str, str, str, str]]:
    """Family, name, package and version of each plugin."""
    return [
        (
            text_of(one.family).removeprefix("gptkit."),
            text_of(one.name),
            text_of(one.distribution),
            text_of(one.version),
        )
        for one in (record.plugins or [])[:MAX_ROWS]
    ]


def _commands(run: Run, record: RunRecord) -> list[Row]:
    """What each command is for, and the command, as from the folder above the runs folder."""
    folder = f"{run.path.absolute().parent.name}/{run.id}".lstrip("/")
    again = ["gptkit", "train", f"{folder}/{run.experiment_file.name}"]
    if record.loaded_from and record.loaded_from.run and record.loaded_from.sha256 is None:
        again += ["--load", record.loaded_from.run[:MAX_TEXT]]
    return [
        ("Train the same again, as a new run", shlex.join(again)),
        ("Resume the training", shlex.join(["gptkit", "resume", folder])),
        ("Generate text", shlex.join(["gptkit", "generate", folder, "-n", "300"])),
        ("Check its files", shlex.join(["gptkit", "runs", "verify", folder])),
        *([("It was started with", text_of(record.command))] if record.command else []),
    ]
