"""`gptkit runs`: list by conditions, show, delete, clean up; runs whose files are hostile."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gptkit.cli.commands.runs import clean
from gptkit.errors import UsageError
from gptkit.runs import Process, Run, list_steps, lock_run, run_ids
from gptkit.runs.cleanup import delete_run, list_removable
from gptkit.runs.store import parse_condition, select_runs
from tests.support import Command, run_of, write_record
from tests.support.runs import RECORD, make
from tools.support.disks import OPERATIONS, REMOVALS, Operation, disk_that_fails, instead

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture
def three(workspace: Path) -> None:
    """Three runs: b is the best, c the newest, a has another width and dataset."""
    make(
        "a",
        {"best_val_loss": 2.0, "dataset": {"title": "data/novel.txt"}},
        {
            "model": {"n_embd": 64, "position": {"type": "alibi"}},
            "data": {"dataset": {"type": "text", "path": "data/novel.txt"}},
        },
    )
    make("b", {"best_val_loss": 1.0, "started": "2026-01-02T10:00:00+00:00"})
    make(
        "c",
        {"best_val_loss": None, "status": "stopped", "step": 5, "started": "2026-02-01T10:00:00+00:00"},
        {"seed": 2},
    )


def ids(*where: str, sort: str = "", reverse: bool = False) -> str:
    return "".join(found.run.id for found in select_runs(Path("runs"), where, sort, reverse))


def test_a_run_of_any_name_is_listed_and_what_is_none_is_counted(
    three: None, gptkit_command: Command
) -> None:
    make("my best run")
    make("\x1b[2J\u202eevil")
    Path("runs/notes").mkdir()
    Path("runs/linked").symlink_to("a", target_is_directory=True)
    listed = gptkit_command("runs")
    assert listed.code == 0
    assert "\nmy best run  " in listed.out
    assert "\n\\x1b[2J\\u202eevil  " in listed.out
    assert listed.err == "2 folders are not runs: linked, notes\n"
    assert gptkit_command("runs", "show", "my best").out.startswith("my best run: finished\n")
    as_json = gptkit_command("runs", "--json")
    assert len(json.loads(as_json.out)) == 5
    assert as_json.err == ""


def test_columns_stay_in_line_after_letters_that_are_two_columns_wide(
    workspace: Path, gptkit_command: Command
) -> None:
    for name in ("ab", "日本", "e\u0301"):
        make(name)
    header, *lines = gptkit_command("runs").out.splitlines()
    wide = {"日本": 2, "e\u0301": -1}
    for line in lines:
        assert line.index("finished") == header.index("status") - wide.get(line.split()[0], 0)


# Chosen and sorted


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ((), "abc"),
        (("data.dataset=shakespeare",), "bc"),
        (("dataset=shakespeare",), "bc"),
        (("data.dataset=novel",), "a"),
        (("data.dataset=data/*.txt",), "a"),
        (("data.dataset!=shakespeare",), "a"),
        (("model.n_embd=64",), "a"),
        (("model.n_embd<=32",), "bc"),
        (("model.n_embd>32",), "a"),
        (("model.position=alibi",), "a"),
        (("model.position.type=rope",), "bc"),
        (("model.position.base>=5e3",), "bc"),
        (("model.qk_norm=false",), "bc"),
        (("optimizer=adamw", "seed=1"), "ab"),
        (("schedule=cosine", "optimizer.type=adamw"), "abc"),
        (("optimizer.learning_rate=1e-3",), "abc"),
        (("best<1.5",), "b"),
        (("best!=1",), "ac"),
        (("status=fin*",), "ab"),
        (("status!=fin*",), "c"),
        (("step<20",), "c"),
        (("started>=2026-01-02",), "bc"),
        (("tokenizer.vocab_size=65",), "abc"),
        (("environment.torch=2.*", "id=[ab]"), "ab"),
        (("status=nothing",), ""),
    ],
)
def test_runs_are_chosen_by_columns_by_their_experiment_and_by_their_record(
    where: tuple[str, ...], found: str, three: None
) -> None:
    assert ids(*where) == found


@pytest.mark.parametrize(
    ("sort", "reverse", "order"),
    [
        ("", False, "abc"),
        ("", True, "cba"),
        ("best", False, "bac"),
        ("best", True, "abc"),  # those without a value are still last
        ("model.n_embd", False, "bca"),
        ("status", True, "cab"),
        ("seed", True, "cab"),
    ],
)
def test_runs_are_sorted_by_any_key(sort: str, reverse: bool, order: str, three: None) -> None:
    assert ids(sort=sort, reverse=reverse) == order


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--where", "model.n_embed=3"], "did you mean 'model.n_embd'?"),
        (["--where", "n_embd=3"], "did you mean 'model.n_embd'?"),
        (["--sort", "bset"], "did you mean 'best'?"),
        (["--where", "environment.trch=1"], "did you mean 'environment.torch'?"),
        (["--where", "best"], "expected KEY=VALUE"),
        (["--where", "=3"], "expected KEY=VALUE"),
        (["--where", "best<low"], "is a number, but 'low' is not"),
    ],
)
def test_a_key_that_nothing_has_gets_the_nearest(
    arguments: list[str], message: str, three: None, gptkit_command: Command
) -> None:
    refused = gptkit_command("runs", "list", *arguments)
    assert refused.code == 2
    assert message in refused.err
    assert refused.out == ""


def test_a_field_of_the_schema_that_no_run_has_is_accepted(three: None, gptkit_command: Command) -> None:
    done = gptkit_command("runs", "--where", "training.minutes>1")
    assert (done.code, done.err) == (0, "")
    assert "No run in runs matches" in done.out


def test_the_plain_command_takes_the_same_flags(three: None, gptkit_command: Command) -> None:
    flags = ("--where", "best<3", "--sort", "best", "--json")
    assert gptkit_command("runs", *flags).out == gptkit_command("runs", "list", *flags).out
    misplaced = gptkit_command("runs", "--sort", "best", "list")
    assert misplaced.code == 2
    assert "gptkit runs list" in misplaced.err


def test_a_key_that_is_not_a_column_becomes_one(three: None, gptkit_command: Command) -> None:
    header, *lines = gptkit_command("runs", "--sort", "model.qk_norm").out.splitlines()
    assert header.split()[-1] == "model.qk_norm"
    assert [line.split()[-1] for line in lines] == ["false", "false", "-"]


def test_json_has_the_same_names_for_every_run(three: None, gptkit_command: Command) -> None:
    Path("runs/odd").mkdir()
    Path("runs/odd/experiment.toml").write_text("[[[")
    listed = json.loads(gptkit_command("runs", "--json", "--sort", "seed").out)
    assert [run["id"] for run in listed] == ["a", "b", "c", "odd"]
    assert {tuple(run) for run in listed} == {
        (
            *("id", "status", "dataset", "hyperparameters", "step", "target_step", "best_val_loss"),
            *("best_bits_per_byte", "started", "ended", "best_step", "tokens", "seconds", "parameters"),
            *("folder", "fields"),
        )
    }
    assert (listed[1]["best_val_loss"], listed[1]["folder"], listed[1]["fields"]) == (
        1.0,
        str(Path("runs/b")),
        {"seed": 1},
    )
    assert (listed[3]["status"], listed[3]["started"]) == ("unreadable", None)
    assert json.loads(gptkit_command("runs", "--json", "--runs-dir", "none").out) == []


def test_a_condition_as_text_is_what_was_given() -> None:
    assert str(parse_condition(" best <= 1.5 ")) == "best_val_loss<=1.5"
    assert parse_condition("name=a=b").wanted == "a=b"
    with pytest.raises(UsageError):
        parse_condition("a b=3")


@pytest.mark.slow
def test_a_thousand_runs_are_listed_quickly_and_without_a_plugin(workspace: Path) -> None:
    for number in range(1000):
        make(f"r{number}", {"started": f"2026-01-01T10:{number // 60 % 60:02d}:{number % 60:02d}+00:00"})
    code = (
        "import sys; from gptkit.cli.app import run_command; "
        "code = run_command(['runs', '--where', 'model.n_embd=32', '--sort', 'best', '--json']); "
        "assert not {'torch', 'gptkit.experiment.schema'} & set(sys.modules); sys.exit(code)"
    )
    before = os.times().children_user
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, timeout=60, check=True
    )
    assert len(json.loads(done.stdout)) == 1000
    # Of the processor, as others may be at work too: two seconds, and as much again for a slow machine
    assert os.times().children_user - before < 4


# Hostile files

HOSTILE_RECORDS: list[Any] = [
    [],
    "text",
    {},
    {"status": {}, "started": [], "step": "x", "dataset": 3, "tokenizer": [1], "environment": "x"},
    {"step": -1, "target_step": 10**400, "best_val_loss": 10**400, "tokens": True, "seconds": -3},
    {"best_step": 10**30, "seconds": 1e-300, "tokens": 2**62, "parameters": 1e308},
    {"status": "running", "process": [], "plugins": {"a": 1}, "loaded_from": "x"},
    {"plugins": [1, {"family": {}, "name": []}], "loaded_from": {"run": [], "step": {}}},
    {"started": "9999-99-99", "ended": "\x1b[2J", "dataset": {"title": "\x1b[2J\n" * 5000, "sha256": {}}},
    {"command": "\ud800", "reason": "\ud800", "status": "\ud800"},
    {"hyperparameters": {"n_embd": 10**300, "context_length": [[[[]]]], "position": {"a": 1}}},
    {"dataset": {str(number): {"x": number} for number in range(5000)}},
]
HOSTILE_EXPERIMENTS = [
    b"",
    b"\xff\xfe",
    b"[[[",
    b"a = 0x" + b"f" * 9000,
    b"a = nan\nb = inf\nc = 1979-05-27T07:32:00Z\nd = [[[[1]]]]\nseed = [1, 'x', nan]",
    b"model = 3\ndata = [1]\ntokenizer = 4\noptimizer = true",
    b".".join([b"a"] * 900) + b" = 1",
    b"x = " + b"[" * 5000,
    b"[data.dataset]\ntype = []\npath = 5",
    "name = '\u2028\x1b'".encode(),
]
HOSTILE_METRICS = [
    b"",
    b"\x00" * 100,
    b'{"step": 1' + b"0" * 400 + b', "val_loss": 1}\n',
    b'{"step": -5, "val_loss": 1}\n{"step": true, "train_loss": 1e999}\n{"step": 2, "val_loss": "x"}\n',
    b'{"step": 9, "val_loss": 1e299, "tokens": {}}\n{"step": 8, "val_loss": -1e299, "seconds": []}\n'
    b'{"step": 10, "val_loss": 3}\n',
    b"[" * 100_000 + b"\n",
]


@pytest.fixture(scope="module")
def hostile_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("hostile") / "runs"
    make("good", runs=runs)
    for number, record in enumerate(HOSTILE_RECORDS):
        run = make(f"record-{number}", runs=runs)
        (run.path / "run.json").write_text(json.dumps(record))
        if isinstance(record, dict):  # and one that has all else
            both = make(f"mixed-{number}", runs=runs)
            (both.path / "run.json").write_text(json.dumps({**RECORD, **record}))
    for number, experiment in enumerate(HOSTILE_EXPERIMENTS):
        make(f"experiment-{number}", runs=runs).experiment_file.write_bytes(experiment)
    for number, metrics in enumerate(HOSTILE_METRICS):
        run = make(f"metrics-{number}", {"status": "running"}, runs=runs)
        (run.path / "metrics.jsonl").write_bytes(metrics)
    odd = make("odd-places", runs=runs)
    odd.samples.write_text("no folder")
    odd.checkpoints.rmdir()
    odd.checkpoints.write_text("no folder")
    samples = make("odd-samples", runs=runs)
    samples.samples.mkdir()
    (samples.samples / "step-x.txt").write_bytes(b"\xff\x1b")
    (samples.samples / "step-000000000010.txt").mkdir()
    fifo = make("fifo", runs=runs)
    (fifo.path / "run.json").unlink()
    os.mkfifo(fifo.path / "run.json")
    (runs / "link").symlink_to(runs / "good")
    return runs


@pytest.mark.parametrize(
    "arguments",
    [
        ("list",),
        ("list", "--sort", "best", "--where", "seed!=9", "--where", "data.dataset!=x"),
        ("list", "--sort", "tokenizer", "--json"),
        ("compare", "--where", "id!=x"),
        ("compare", "--where", "id!=x", "--json"),
        ("clean",),
    ],
)
def test_hostile_runs_are_shown_with_what_can_be_read(
    arguments: tuple[str, ...], hostile_runs: Path, gptkit_command: Command
) -> None:
    done = gptkit_command("runs", *arguments, "--runs-dir", hostile_runs)
    counted = "1 folder is not a run: link\n" if "list" in arguments and "--json" not in arguments else ""
    assert (done.code, done.err) == (0, counted)
    assert "\x1b" not in done.out
    if "--json" in arguments:
        json.loads(done.out)
    if arguments[0] != "clean":
        assert all(name in done.out for name in run_ids(hostile_runs))
        assert "link" not in run_ids(hostile_runs)


@pytest.mark.slow
def test_each_hostile_run_can_be_shown(hostile_runs: Path, gptkit_command: Command) -> None:
    for name in run_ids(hostile_runs):
        for more in ((), ("--json",)):
            done = gptkit_command("runs", "show", name, "--runs-dir", hostile_runs, *more)
            assert (done.code, done.err) == (0, ""), name
            assert "\x1b" not in done.out
            assert name in done.out


# Shown


def test_show_prints_what_the_run_is_its_results_and_the_next_commands(
    workspace: Path, gptkit_command: Command
) -> None:
    make("one-1", {"status": "stopped"}, steps=(10, 20))
    shown = gptkit_command("runs", "show", "one")
    assert (shown.code, shown.err) == (0, "")
    for words in (
        "one-1: stopped",
        "step 20 of 20, 1,280 tokens, 2.0 s of training, 640 tokens/s",
        "1.5000 (2.2500 bits/byte) at step 10",
        "1.9000 (2.8000 bits/byte)",
        "shakespeare, 1,000 characters",
        "char, vocabulary 65",
        "seed = 1\n",
        "optimizer = adamw\n",
        "model.qk_norm = false\n",
        "tokenizer = char  # gptkit 0.1.0",
        "model.position = rope (base = 5000.0)",
        "step 10  1.0 kB  best",
        "step 20  1.0 kB  last",
        "torch = 2.13.0",
        "gptkit resume one-1  # go on",
        "gptkit generate one-1",
    ):
        assert words in shown.out, words
    for default in ("val_fraction", "n_layer", "learning_rate"):
        assert f"{default} =" not in shown.out


def test_show_as_json(workspace: Path, gptkit_command: Command) -> None:
    make("one-1", steps=(20,))
    shown = json.loads(gptkit_command("runs", "show", "latest", "--json").out)
    assert shown["checkpoints"] == [{"step": 20, "bytes": 1000}]
    assert shown["settings"]["model.n_embd"] == 32
    assert shown["experiment"]["model.n_layer"] == 4
    assert (shown["best_val_loss"], shown["train_loss"], shown["val_bits_per_byte"]) == (1.5, 1.4, 2.8)
    assert shown["commands"]["write text"] == "gptkit generate one-1"


# Deleted


def test_delete_with_yes_removes_the_runs_that_are_named_and_nothing_else(
    three: None, gptkit_command: Command
) -> None:
    done = gptkit_command("runs", "delete", "a", "runs/c", "a", "--yes")
    assert (done.code, done.err) == (0, "")
    assert os.listdir("runs") == ["b"]


def test_delete_without_a_terminal_asks_for_yes(three: None, gptkit_command: Command) -> None:
    refused = gptkit_command("runs", "delete", "a")
    assert refused.code == 2
    assert "--yes" in refused.err
    assert run_ids(Path("runs")) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("answer", "left"), [("y", ["b", "c"]), ("n", ["a", "b", "c"]), ("", ["a", "b", "c"])]
)
def test_delete_asks_on_a_terminal(answer: str, left: list[str], three: None) -> None:
    Path("runs/a/notes.md").write_text("mine")
    here, there = pty.openpty()
    words = [sys.executable, "-m", "gptkit", "runs", "delete", "a"]
    process = subprocess.Popen(words, stdin=there, stdout=there, stderr=there, env=ENVIRONMENT)
    os.close(there)
    shown = b""
    while b"[y/N]" not in shown:
        shown += os.read(here, 1000)
    os.write(here, answer.encode() + b"\n")
    assert process.wait(60) == 0
    os.close(here)
    assert b"notes.md, which gptkit did not make" in shown
    assert run_ids(Path("runs")) == left


def _foreign(workspace: Path) -> tuple[str, int]:
    Path("project/checkpoints").mkdir(parents=True)
    Path("project/experiment.toml").write_text("")
    Path("project/thesis.tex").write_text("")
    return "./project", 2


def _no_run(workspace: Path) -> tuple[str, int]:
    Path("runs/empty").mkdir()
    return "runs/empty", 2


def _link(workspace: Path) -> tuple[str, int]:
    make("real", runs=workspace / "elsewhere")
    Path("runs/link").symlink_to(workspace / "elsewhere" / "real")
    return "runs/link", 2


def _link_with_slash(workspace: Path) -> tuple[str, int]:
    return _link(workspace)[0] + "/", 2


def _link_within(workspace: Path) -> tuple[str, int]:
    run = make("linked")
    (run.path / "samples").symlink_to(workspace / "data")
    return "linked", 5


def _outside(workspace: Path) -> tuple[str, int]:
    make("outside", runs=Path())
    return "outside", 2


def _not_there(workspace: Path) -> tuple[str, int]:
    return "nope", 2


def _above(workspace: Path) -> tuple[str, int]:
    return "..", 2


REFUSALS = [_foreign, _no_run, _link, _link_with_slash, _link_within, _outside, _not_there, _above]


@pytest.mark.parametrize("case", REFUSALS, ids=[case.__name__ for case in REFUSALS])
def test_delete_refuses_what_is_not_a_run_and_then_removes_nothing(
    case: Any, workspace: Path, gptkit_command: Command
) -> None:
    make("good")
    name, code = case(workspace)
    before = sorted(workspace.rglob("*"))
    refused = gptkit_command("runs", "delete", "good", name, "--yes")
    assert refused.code == code
    assert refused.err.startswith("gptkit: ")
    assert sorted(workspace.rglob("*")) == before


def test_a_run_outside_is_deleted_where_its_path_is_given(workspace: Path, gptkit_command: Command) -> None:
    make("outside", runs=Path())
    assert gptkit_command("runs", "delete", "./outside", "--yes").code == 0
    assert not Path("outside").exists()


def test_a_run_in_use_is_not_deleted_nor_the_others(workspace: Path, gptkit_command: Command) -> None:
    make("free")
    run = make("busy", {"process": Process.current().model_dump()})
    with lock_run(run):
        refused = gptkit_command("runs", "delete", "free", "busy", "--yes")
    assert refused.code == 7
    assert f"in use by process {os.getpid()}" in refused.err
    assert run_ids(Path("runs")) == ["busy", "free"]


class Killed(BaseException):
    """A process has no chance to tidy up after it."""


def killed_before(at: int) -> Any:
    """The `at`-th change to the disk is not made any more; a removal of a folder is half made."""
    done = 0

    def wrap(name: str, real: Operation) -> Operation:
        def operation(*arguments: Any) -> Any:
            nonlocal done
            done += 1
            if done > at:
                raise Killed
            if done == at:
                if name == "remove_folder":
                    for path in sorted(arguments[0].rglob("*"))[::2]:
                        path.is_dir() or path.unlink()
                raise Killed
            return real(*arguments)

        return operation

    return instead((*OPERATIONS, *REMOVALS), wrap)


def test_a_kill_in_a_deletion_leaves_a_whole_run_or_none(workspace: Path, gptkit_command: Command) -> None:
    whole = sorted(path.name for path in make("sample", steps=(5,)).path.rglob("*"))
    seen = set()
    for at in range(1, 20):
        run = make(f"run-{at}", steps=(5,))
        try:
            with killed_before(at):
                delete_run(run)
        except Killed:
            pass
        else:
            break
        if run.path.exists():
            seen.add("whole")
            left = sorted(path.name for path in run.path.rglob("*") if path.name != ".lock")
            assert left == whole
            assert run.id in run_ids(Path("runs"))
        else:
            seen.add("gone")
            assert run.id not in run_ids(Path("runs"))
            assert gptkit_command("runs", "show", run.id).code == 2
    assert seen == {"whole", "gone"}
    trash = list(Path("runs").glob(".trash-*"))
    assert trash
    assert gptkit_command("runs", "clean", "--yes").code == 0
    assert not list(Path("runs").glob(".trash-*"))


@pytest.mark.parametrize("at", [1, 2])
def test_a_disk_that_fails_in_a_deletion_is_reported(
    at: int, workspace: Path, gptkit_command: Command
) -> None:
    make("one-1")
    with disk_that_fails(at, stays_full=True):
        failed = gptkit_command("runs", "delete", "one-1", "--yes")
    assert failed.code == 6
    assert "deleting the run one-1" in failed.err
    assert run_ids(Path("runs")) == (["one-1"] if at == 1 else [])


# Cleaned


def test_clean_lists_what_can_be_removed_with_a_total_and_removes_nothing(
    workspace: Path, gptkit_command: Command
) -> None:
    make("done", steps=(5, 10, 15, 20))  # the best is 10, the last 20
    make("stopped", {"status": "stopped"}, steps=(5, 10, 15))
    make("crashed", {"status": "running"}, steps=())
    make("crashed-saved", {"status": "running"}, steps=(5, 10))
    make("elsewhere", {"status": "running", "process": {"pid": 1, "host": "another"}})
    left = make("left", {"status": "stopped"}, steps=(5,))
    (left.checkpoints / ".bad-step-000000000004-ab").mkdir()
    (left.checkpoints / ".tmp-6-ab").mkdir()
    (left.path / ".tmp-run.json-ab").write_text("x")
    (left.path / ".tmp-link").symlink_to(workspace)
    Path("runs/.trash-gone-ab").mkdir()
    Path("runs/.tmp-verify-0000000000000000-ab").mkdir()
    before = sorted(workspace.rglob("*"))
    listed = gptkit_command("runs", "clean")
    assert (listed.code, listed.err) == (0, "")
    assert [str(thing.path) for thing in list_removable(Path("runs"))] == [
        "runs/crashed",
        "runs/done/checkpoints/step-000000000005",
        "runs/done/checkpoints/step-000000000015",
        "runs/left/.tmp-run.json-ab",
        "runs/left/checkpoints/.bad-step-000000000004-ab",
        "runs/left/checkpoints/.tmp-6-ab",
        "runs/.tmp-verify-0000000000000000-ab",
        "runs/.trash-gone-ab",
    ]
    assert [line.split()[0] for line in listed.out.splitlines()[1:-2]] == [
        str(thing.path) for thing in list_removable(Path("runs"))
    ]
    assert listed.out.splitlines()[-2].split()[0] == "total"
    assert "gptkit runs clean --yes" in listed.out
    assert sorted(workspace.rglob("*")) == before


@pytest.fixture
def trained(tiny_experiment: Path, gptkit_command: Command) -> Run:
    """A finished run with checkpoints of 5, 10, 15 (kept: three) and 20, of which the last is the best."""
    settings = ("--set", "checkpoints.checkpoint_interval=5", "--set", "checkpoints.keep_last=9")
    done = gptkit_command("train", tiny_experiment, *settings, "--quiet")
    return Run(Path(done.out.strip()))


def test_clean_keeps_the_best_and_the_last(trained: Run, gptkit_command: Command) -> None:
    assert list_steps(trained.checkpoints) == [5, 10, 15, 20]
    write_record(trained, {**trained.record(), "best_step": 10})
    done = gptkit_command("runs", "clean", "--yes")
    assert (done.code, done.err) == (0, "")
    assert list_steps(trained.checkpoints) == [10, 20]
    assert not list(trained.checkpoints.glob(".*"))
    assert gptkit_command("runs", "verify", "latest").code == 0
    assert "Nothing in runs can be removed" in gptkit_command("runs", "clean").out


def test_clean_keeps_what_another_run_began_from(trained: Run, gptkit_command: Command) -> None:
    make("next", {"loaded_from": {"run": trained.id, "step": 5}})
    renamed = Run(trained.path.rename("runs/my best run"))
    assert gptkit_command("runs", "clean", "--yes").code == 0
    assert list_steps(renamed.checkpoints) == [5, 20]


def test_clean_removes_no_checkpoint_where_those_that_stay_are_damaged(
    trained: Run, gptkit_command: Command
) -> None:
    model = trained.checkpoints / "step-000000000020" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    done = gptkit_command("runs", "clean", "--yes")
    assert done.code == 0
    assert "none of the remaining checkpoints verifies" in done.out
    assert list_steps(trained.checkpoints) == [5, 10, 15, 20]


def test_clean_leaves_runs_in_use_alone(trained: Run, gptkit_command: Command) -> None:
    run = make("young", {"status": "running", "process": Process.current().model_dump()})
    (run.checkpoints / ".tmp-5-ab").mkdir()
    with lock_run(trained), lock_run(run):
        assert list_removable(Path("runs")) == []
        assert gptkit_command("runs", "clean", "--yes").code == 0
    assert list_steps(trained.checkpoints) == [5, 10, 15, 20]
    assert (run.checkpoints / ".tmp-5-ab").is_dir()


def test_clean_leaves_a_run_alone_that_was_resumed_since_it_was_listed(
    trained: Run, monkeypatch: pytest.MonkeyPatch, gptkit_command: Command
) -> None:
    things = list_removable(Path("runs"))
    assert len(things) == 3
    monkeypatch.setattr("gptkit.runs.cleanup.list_removable", lambda folder: things)
    with lock_run(trained):
        done = gptkit_command("runs", "clean", "--yes")
    assert (done.code, done.out.count("the run is in use")) == (0, 3), done
    assert list_steps(trained.checkpoints) == [5, 10, 15, 20]


@pytest.mark.slow
def test_a_kill_while_cleaning_leaves_whole_checkpoints_only(trained: Run, gptkit_command: Command) -> None:
    for at in range(1, 6):
        with suppress(Killed), killed_before(at):
            clean(Path("runs"), yes=True)
        assert gptkit_command("runs", "verify", "latest").code == 0
    assert gptkit_command("runs", "clean", "--yes").code == 0
    assert [path.name for path in trained.checkpoints.iterdir()] == ["step-000000000020"]


@pytest.mark.parametrize(
    "command",
    [
        ["rerun"],
        *(["runs", name] for name in ("list", "show", "compare", "delete", "clean")),
    ],
    ids=" ".join,
)
def test_the_help_shows_an_example_first(command: list[str], gptkit_command: Command) -> None:
    shown = gptkit_command(*command, "--help")
    assert shown.code == 0
    after_usage = shown.out.partition("Usage")[2].splitlines()
    words = [line.strip() for line in after_usage[1:] if line.strip()]
    assert words[0] == "Examples:"
    assert words[1].startswith(f"gptkit {' '.join(command)}")


# The table of runs that were trained


@pytest.mark.slow
def test_the_table_of_runs_is_plain_lines_when_piped(tiny_experiment: Path, gptkit_command: Command) -> None:
    none = gptkit_command("runs")
    assert none.code == 0
    assert "There are no runs in runs yet" in none.out
    first = run_of(gptkit_command("train", tiny_experiment, "--quiet"))
    second = run_of(gptkit_command("train", tiny_experiment, "--stop-at", 3, "--quiet", "--name", "other"))
    (Path("runs") / "odd").mkdir()
    (Path("runs") / "odd" / "experiment.toml").write_text("")
    table = gptkit_command("runs")
    assert (table.code, table.err) == (0, "")
    header, *lines = table.out.splitlines()
    assert header.split() == [
        *("id", "status", "dataset", "hyperparameters", "steps", "best", "val", "loss", "bits/byte", "when")
    ]
    assert [line.split()[:2] for line in lines] == [
        ["odd", "unreadable"],
        [first.id, "finished"],
        [second.id, "stopped"],
    ]
    assert "data/mine.txt" in lines[1]
    assert "c16 e32 h2 b2 B4" in lines[1]
    assert f"20/20  {first.record()['best_val_loss']:.4f}" in lines[1]
    assert "3/20" in lines[2]
    assert table.out.isascii()


def test_control_characters_of_a_record_are_escaped(tiny_experiment: Path, gptkit_command: Command) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--steps", 1, "--quiet"))
    write_record(run, {**run.record(), "status": "\x1b[2J\nfine"})
    table = gptkit_command("runs").out
    assert "\x1b" not in table
    assert len(table.splitlines()) == 2
