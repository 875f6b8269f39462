"""The kinds of cases of `tools.fuzz`: each makes files and a command line, and knows what may not happen.

Input: a workspace with valid runs, and what hypothesis drew. Output: the arguments, a description of the
files for the message about a violation, and a function that judges exit code and output where more than a
documented end is expected.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tomllib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, nan
from pathlib import Path
from typing import Any, Protocol

import tomli_w

from gptkit.experiment.overrides import FLAGS
from gptkit.runs.metrics import parse_row
from gptkit.words import printable
from tools.support import small_text
from tools.support.guard import Guard
from tools.support.mutations import (
    HOSTILE,
    Files,
    disturb_folder,
    mutate_bytes,
    mutate_experiment,
    mutate_run,
    not_finite,
    read_folder,
    write_folder,
)

EXPERIMENT = """\
name = "fuzz"
seed = 7
tokenizer = {{ type = "{tokenizer}" }}
data = {{ dataset = "data/mine.txt", val_fraction = 0.2 }}
model = {{ context_length = 8, n_embd = 8, n_layer = 1, n_head = 2, position = {{ type = "{position}" }} }}
training = {{ max_steps = 4, batch_size = 2, log_interval = 1, backend = "cpu", threads = 1 }}
optimizer = {{ type = "{optimizer}" }}
evaluation = {{ eval_interval = 2 }}
checkpoints = {{ checkpoint_interval = 2 }}
sampling = {{ sample_interval = 4, max_new_tokens = 3 }}
tracking = {{ tensorboard = true }}
"""
BASES = (("char", "rope", "muon"), ("bigram", "learned", "adamw"), ("byte", "alibi", "muon"))
# fmt: off
NAMES = (
    "../x", "..", ".", "/", "~", "", "\0", "a\0b", "CON", "con.txt", "nul", "aux.txt", "a\\b", "..\\x",
    "-", "--", "mine", "mine.txt", "data/mine.txt", "latest", "best", "fuzz", "x" * 300,
    "a/" * 2000, "\udcff", "\ud800",
    "data", "data/*.txt", "[", "*", "?", "**", "{", "shakespeare", "text", "markov", "novel.txt", "\r\n",
    "é" * 99,
)
# fmt: on
# Letters of several scripts, marks, and what no name may have
LETTERS = "abzAZ019_-яёשًאहि日語éñßĲ½ ./\\:*\u0301\u200d\u202e\u3164\ufe0f\u00ad"
# Fields on which every weight depends, each with two valid values
DECISIVE: dict[tuple[str, ...], tuple[Any, Any]] = {
    ("seed",): (7, 8),
    ("training", "batch_size"): (2, 3),
    ("training", "max_steps"): (4, 7),
    ("optimizer", "learning_rate"): (0.013, 0.03),
    ("model", "dropout"): (0.0, 0.5),
}
ANSWERS: dict[str, tuple[Any, Any]] = {  # two values of the field of a flag
    "training.max_steps": (1, 2),
    "training.epochs": (1.0, 2.0),
    "training.minutes": (1.0, 2.0),
    "training.batch_size": (2, 3),
    "optimizer.learning_rate": (0.01, 0.02),
    "optimizer.weight_decay": (0.0, 0.1),
    "evaluation.eval_interval": (1, 2),
    "seed": (1, 2),
    "model.context_length": (4, 8),
    "model.n_embd": (8, 16),
    "model.n_head": (1, 2),
    "model.n_layer": (1, 2),
    "model.dropout": (0.0, 0.5),
    "data.dataset": ("short.txt", "novel.txt"),
    "training.backend": ("cpu", "auto"),
    "name": ("a", "b"),
}


@dataclass(frozen=True)
class Drawn:
    """What hypothesis draws for a case."""

    kind: str
    rng: random.Random
    wild: Any
    name: str


@dataclass(frozen=True)
class Made:
    """A case: `expected` returns what is wrong with an exit code and an output, or "".

    With `read` the reader of standard output closes it after so many bytes.
    """

    arguments: Sequence[str]
    description: str
    expected: Callable[[int, str], str] | None = None
    read: int | None = None


class RunCommand(Protocol):
    """Runs a command line in this process; returns its exit code and output."""

    def __call__(self, *arguments: str) -> tuple[int, str]: ...


@dataclass
class Workspace:
    """The working folder, with texts and the files of valid runs."""

    root: Path
    guard: Guard
    runs: list[Files] = field(default_factory=list)
    experiments: list[dict[str, Any]] = field(default_factory=list)


def prepare(run: RunCommand, guard: Guard) -> Workspace:
    """Fills the working folder with texts, and trains a few runs."""
    made = Workspace(Path.cwd(), guard)
    Path("data").mkdir()
    Path("data/mine.txt").write_text(small_text(60))
    Path("novel.txt").write_text(small_text(20))
    Path("short.txt").write_text("x")
    for tokenizer, position, optimizer in BASES:
        text = EXPERIMENT.format(tokenizer=tokenizer, position=position, optimizer=optimizer)
        Path("base.toml").write_text(text)
        made.experiments.append(tomllib.loads(text))
        code, output = run("train", "base.toml", "--stop-at", "3", "--runs-dir", f"made-{tokenizer}")
        assert code == 0, output
        (folder,) = Path(f"made-{tokenizer}").iterdir()
        made.runs.append(read_folder(folder))
    return made


def experiment(of: Workspace, drawn: Drawn) -> Made:
    """An experiment file with a text that is too short, so that it is checked but not trained."""
    return _experiment(of, drawn, ["--dataset", "short.txt"])


def trained(of: Workspace, drawn: Drawn) -> Made:
    """An experiment file that is trained for a step if it is valid."""
    return _experiment(of, drawn, ["--set", "sampling.sample_interval=0", "--dataset", "data/mine.txt"])


def _experiment(of: Workspace, drawn: Drawn, more: list[str]) -> Made:
    data = mutate_experiment(drawn.rng.choice(of.experiments), drawn.rng, drawn.wild)
    if drawn.rng.random() < 0.02:
        data = drawn.rng.choice(HOSTILE)
    Path("case.toml").write_bytes(data)
    write_folder(Path("runs"), {})
    return Made(["train", "case.toml", "--stop-at", "1", *more], repr(data[:2000]))


def run_folder(of: Workspace, drawn: Drawn) -> Made:
    """A run folder in which something is changed."""
    rng = drawn.rng
    files, names = mutate_run(rng.choice(of.runs), rng, drawn.wild)
    folder = _put(files, rng.choice(("fuzz-1", "renamed")))
    if rng.random() < 0.1:
        names.append(disturb_folder(folder, of.root.parent / "outside", rng))
    if rng.random() < 0.1:
        closed = rng.choice(
            [*folder.rglob("*"), folder, Path("runs"), Path("data/mine.txt"), Path("base.toml")]
        )
        of.guard.make_unreadable(closed)
        names.append(f"{closed.name} is unreadable")
    commands = [
        ["runs"],
        ["runs", "show", folder.name],
        ["runs", "verify", folder.name],
        ["runs", "report", folder.name],
        ["resume", folder.name, "--verify"],
        ["resume", folder.name, "--stop-at", "4", "--require-exact"],
        ["generate", folder.name, "-n", "2", "--checkpoint", rng.choice(("best", "last", "3", "2"))],
        ["resume", folder.name, "--stop-at", "4"],
        ["train", "base.toml", "--load", folder.name, "--stop-at", "1"],
    ]
    chosen = rng.choices(commands, (2, 1, 3, 3, 2, 1, 4, 3, 1))[0]
    return Made(chosen, f"changed {names}, wild {drawn.wild!r}")


def _put(files: Files, name: str) -> Path:
    """The folder of the only run."""
    write_folder(Path("runs"), {})
    write_folder(Path("runs", name), files)
    return Path("runs", name)


def _made_runs() -> list[str]:
    return os.listdir("runs") if os.path.isdir("runs") else []


def edited_experiment(of: Workspace, drawn: Drawn) -> Made:
    """A run whose experiment file was edited in a field on which every weight depends."""
    rng = drawn.rng
    files = dict(rng.choice(of.runs))
    table = tomllib.loads(files["experiment.toml"].decode())
    path = rng.choice(list(DECISIVE))
    *tables, key = path
    place = table
    for name in tables:
        place = place[name]
    old = place[key]
    place[key] = next(value for value in rng.sample(DECISIVE[path], 2) if value != old)
    files["experiment.toml"] = tomli_w.dumps(table).encode()
    _put(files, "edited")
    commands = [
        ["resume", "edited", "--stop-at", "4"],
        ["resume", "edited", "--steps", "9", "--stop-at", "4"],
        ["resume", "edited", "--verify"],
        ["runs", "verify", "edited"],
        ["rerun", "edited"],
    ]

    def expected(code: int, output: str) -> str:
        return "" if code else "an edited experiment passes for the one that was trained"

    return Made(rng.choice(commands), f"{'.'.join(path)} = {old!r} -> {place[key]!r}", expected)


def not_finite_weights(of: Workspace, drawn: Drawn) -> Made:
    """A checkpoint with NaN or infinity and right hashes."""
    rng = drawn.rng
    files, number = rng.choice(of.runs), rng.choice((nan, inf, -inf))
    for step in (2, 3):
        files, tensor = not_finite(files, step, number, rng)
    _put(files, "broken")
    which = rng.choice(("2", "3", "best", "last"))
    commands = [
        ["generate", "broken", "-n", "2", "--checkpoint", which],
        ["train", "base.toml", "--load", "broken"],
        ["runs", "verify", "broken"],
        ["resume", "broken"],
        ["export", "broken", "exported", "--checkpoint", which],
    ]
    shutil.rmtree("exported", ignore_errors=True)

    def expected(code: int, output: str) -> str:
        return "" if code == 5 and "not finite" in output else "weights that are no numbers were used"

    return Made(rng.choice(commands), f"{number} in {tensor}", expected)


def dataset_name(of: Workspace, drawn: Drawn) -> Made:
    name = _name(drawn)
    commands = [
        ["datasets", "show", name],
        ["datasets", "add", name, "novel.txt"],
        ["datasets", "add", name, name, "--force"],
        ["datasets", "fetch", name, "--repair"],
        ["train", "base.toml", "--dataset", name, "--stop-at", "1", "--no-save"],
        ["train", "base.toml", "--set", f"data.dataset.type={name}", "--stop-at", "1", "--no-save"],
    ]
    return Made(drawn.rng.choices(commands, (4, 4, 1, 1, 1, 1))[0], "a name")


def run_name(of: Workspace, drawn: Drawn) -> Made:
    name = _name(drawn)
    commands = [
        ["generate", name, "-n", "1"],
        ["resume", name, "--stop-at", "1"],
        ["runs", "verify", name],
        ["train", "base.toml", "--name", name, "--dataset", "short.txt"],
        ["train", "base.toml", "--load", name, "--dataset", "short.txt"],
        ["generate", "latest", "-n", "1", "--checkpoint", name],
        ["generate", "latest", "-n", "1", "--prompt", f"x{name}"],  # x: not '-'
    ]
    return Made(drawn.rng.choice(commands), "a name")


def _name(drawn: Drawn) -> str:
    """A name, but none of an existing folder outside the workspace, which would take long to search."""
    name = drawn.rng.choice((drawn.name, drawn.rng.choice(NAMES), drawn.rng.choice(NAMES) + drawn.name))
    leads_away = os.path.isabs(name) or ".." in Path(name).parts or name.startswith("~")
    return f"x{name}" if leads_away and (os.path.isdir(name) or set(name) & set("*?[")) else name


def chosen_name(of: Workspace, drawn: Drawn) -> Made:
    """A run that is trained under a name of any letters."""
    rng = drawn.rng
    name = (
        "".join(rng.choices(LETTERS, k=rng.choice((1, 2, 3, 8, 40, 64, 65))))
        if rng.random() < 0.8
        else drawn.name
    )
    if rng.random() < 0.5:
        name = "".join(letter for letter in name if letter.isalpha()) or "x"
    write_folder(Path("runs"), {})

    def expected(code: int, output: str) -> str:
        folders = _made_runs()
        if code:
            return "" if code == 2 and not folders else "a run was made although its name was refused"
        composed = unicodedata.normalize("NFC", name)
        if len(folders) != 1 or not folders[0].startswith(f"{composed}.c8.") or not folders[0].isprintable():
            return f"the folders are {folders!r}"
        wrong = set(folders[0]) & set('/\\:*?"<>| ') or len(os.fsencode(folders[0])) > 240
        return f"{folders[0]!r} is a name that some systems refuse" if wrong else ""

    more = [
        "--set",
        "sampling.sample_interval=0",
        "--dataset",
        "data/mine.txt",
        "--stop-at",
        "1",
        "--no-save",
    ]
    return Made(["train", "base.toml", f"--name={name}", *more], "a name", expected)


def folder_name(of: Workspace, drawn: Drawn) -> Made:
    """A valid run whose folder was renamed."""
    rng = drawn.rng
    name = rng.choice((drawn.name, rng.choice(NAMES), "".join(rng.choices(LETTERS, k=rng.randint(1, 30)))))
    name = (
        name.replace("/", "")
        .replace("\0", "")
        .encode("utf-8", "surrogateescape" if name == "\udcff" else "replace")
        .decode("utf-8", "surrogateescape")
    )
    while len(os.fsencode(name)) > 200:
        name = name[:-1]
    if name in ("", ".", "..") or name.startswith((".tmp-", ".trash-")):
        name = f"x{name}"
    _put(rng.choice(of.runs), name)
    Path("runs/notes").mkdir(exist_ok=True)
    other = unicodedata.normalize(rng.choice(("NFC", "NFD")), name)
    commands = [
        ["runs"],
        ["runs", "--json"],
        ["runs", "show", f"runs/{name}"],
        ["runs", "show", f"runs/{other}"],
        ["generate", f"runs/{name}", "-n", "1"],
        ["runs", "clean"],
        ["runs", "report", f"runs/{name}"],
    ]
    chosen = rng.choice(commands)

    def expected(code: int, output: str) -> str:
        if code:
            return "a run is not found by its path"
        shown = json.dumps(name)[1:-1] if "--json" in chosen else printable(name)
        return "" if chosen[1:] not in ([], ["--json"]) or shown in output else "a run is not listed"

    return Made(chosen, f"a run called {name!r}", expected)


def two_answers(of: Workspace, drawn: Drawn) -> Made:
    """A field that the command line sets twice."""
    rng = drawn.rng
    flag = rng.choice([flag for flag in FLAGS if flag.key in ANSWERS])
    one, other = rng.sample(ANSWERS[flag.key], 2)
    ways = [
        [rng.choice(flag.names), str(one)],
        [rng.choice(flag.names), str(other)],
        ["--set", f"{flag.key}={json.dumps(other)}"],
        ["--set", f"{flag.key} = {json.dumps(one)}"],
    ]
    first, second = rng.sample(ways, 2)
    write_folder(Path("runs"), {})

    def expected(code: int, output: str) -> str:
        if code != 2 or _made_runs():
            return "one of two answers counts"
        return (
            "" if output.count(str(one)) + output.count(str(other)) >= 2 else "the message does not name both"
        )

    return Made(["train", "base.toml", *first, *second], flag.key, expected)


def closed_pipe(of: Workspace, drawn: Drawn) -> Made:
    """A command whose reader has gone away."""
    rng = drawn.rng
    _put(rng.choice(of.runs), "fuzz-1")
    shutil.copytree("runs/fuzz-1", "runs/other")
    train = ["train", "base.toml", "--stop-at", "1", "--dataset", "data/mine.txt"]
    commands = [
        ["runs"],
        ["runs", "--json"],
        ["runs", "show", "fuzz-1"],
        ["runs", "compare", "fuzz-1", "other", *rng.choice(([], ["--json"]))],
        ["runs", "verify", "fuzz-1"],
        ["runs", "report", "fuzz-1"],
        ["runs", "clean"],
        ["generate", "fuzz-1", "-n", "30", "--num-samples", rng.choice("13")],
        ["datasets"],
        ["plugins"],
        ["plugins", "show", "rope"],
        ["schema"],
        [*train, *rng.choice(([], ["--json"], ["--quiet"]))],
        ["resume", "fuzz-1", *rng.choice(([], ["--json"], ["--quiet"]))],
        ["--help"],
        ["--version"],
    ]

    def expected(code: int, output: str) -> str:
        return "a closed pipe is an error" if code else ""

    return Made(rng.choice(commands), "", expected, read=rng.choice((0, 0, 1, 10, 200)))


def large_log(of: Workspace, drawn: Drawn) -> Made:
    """A metrics.jsonl of megabytes, damaged in places, of a run that was killed."""
    rng = drawn.rng
    files = dict(rng.choice(of.runs))
    record = json.loads(files["run.json"])
    files["run.json"] = json.dumps({**record, "status": "running"}).encode()
    count, every = rng.choice((1000, 10_000, 30_000)), rng.choice((1, 7, 1000))
    lines = []
    for number in range(count):
        row: dict[str, Any] = {
            "step": number,
            "train_loss": rng.random(),
            "tokens": number,
            "seconds": number / 8,
        }
        if number % every == 0:
            row |= {
                "val_loss": round(rng.uniform(0, 20), rng.choice((2, 5, 17))),
                "bits_per_byte": rng.random(),
            }
        lines.append(json.dumps(row).encode())
    if rng.random() < 0.5:  # resumed from before
        lines += lines[rng.randrange(count) :]
    for _ in range(rng.choice((0, 0, 1, 5))):
        at = rng.randrange(len(lines))
        lines[at] = mutate_bytes(lines[at], rng)
    files["metrics.jsonl"] = b"\n".join(lines) + b"\n" * rng.randint(0, 1)
    _put(files, "large")
    best = _lowest(files["metrics.jsonl"])
    commands = [
        ["runs", "--json"],
        ["runs", "show", "large", "--json"],
        ["runs", "report", "large"],
        ["runs", "compare", "large", "other"],
    ]
    chosen = rng.choice(commands)
    if "compare" in chosen:
        shutil.copytree("runs/large", "runs/other")

    def expected(code: int, output: str) -> str:
        if code:
            return "a large log is an error"
        if "--json" not in chosen:
            return ""
        shown = json.loads(output)
        found = (shown if "show" in chosen else shown[0])["best_val_loss"]
        return "" if found == best else f"the best val loss is {best}, not {found}"

    return Made(chosen, f"{len(lines)} lines", expected)


def _lowest(data: bytes) -> float | None:
    """The lowest val loss of the rows, found line by line."""
    best = inf
    for line in data.split(b"\n"):
        row = parse_row(line) or {}
        loss = row.get("val_loss")
        if isinstance(loss, int | float) and not isinstance(loss, bool):
            best = min(best, loss)
    return None if best == inf else best


Case = Callable[[Workspace, Drawn], Made]
# The number of cases of each kind among thirty-two
KINDS: dict[str, tuple[int, Case]] = {
    "experiment file": (6, experiment),
    "experiment, trained": (1, trained),
    "run folder": (9, run_folder),
    "edited experiment": (2, edited_experiment),
    "not finite": (2, not_finite_weights),
    "dataset name": (2, dataset_name),
    "run name": (2, run_name),
    "chosen name": (2, chosen_name),
    "folder name": (2, folder_name),
    "two answers": (2, two_answers),
    "closed pipe": (1, closed_pipe),
    "large log": (1, large_log),
}
