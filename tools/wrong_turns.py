"""Wrong inputs that newcomers try, with the exit code and phrases of gptkit's answer to each.

`python -m tools.wrong_turns` in a checkout tries each and prints the answer, for a person to read whether it
states what is wrong and what to do. tests/cli/test_wrong_turns.py compares the answers with the phrases here.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import gptkit
from gptkit.cli.app import run_command
from gptkit.experiment.load import experiment_from_dict
from tools.support import TINY, small_text

NOWHERE = "http://127.0.0.1:9/nothing"  # no server listens there


@dataclass(frozen=True)
class Turn:
    """A command line, files that are there for it, the exit code, and phrases of the answer."""

    words: str
    code: int
    phrases: tuple[str, ...]
    files: Mapping[str, str | bytes] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.words


def turn(words: str, code: int, *phrases: str, **files: str | bytes) -> Turn:
    """`files` by names with '__' for '.'; e.g. x__toml."""
    return Turn(words, code, phrases, {name.replace("__", "."): text for name, text in files.items()})


def experiment(words: str, code: int, text: str | bytes, *phrases: str) -> Turn:
    """A turn of which the experiment file, my.toml, is the point."""
    return turn(words, code, *phrases, my__toml=text)


TRAIN = "train my.toml"

TURNS = [
    # The command line
    turn("", 2),
    turn("trian tiny.toml", 2, "Did you mean 'train'?", "gptkit --help"),
    turn("train", 2, "Missing argument 'EXPERIMENT'; as in: gptkit train experiments/"),
    turn("tiny.toml", 2, "No such command 'tiny.toml'", "To train it: gptkit train tiny.toml"),
    turn("train tiny.toml --stpes 3", 2, "No such option: --stpes", "--steps"),
    turn("train tiny.toml --steps ten", 2, "'--steps': should be a whole number"),
    turn("train tiny.toml --steps 1e3", 2, "'--steps': should be a whole number"),
    turn("train tiny.toml --steps 0", 2, "--steps 0: training.max_steps = 0: should be greater than"),
    turn("train tiny.toml --drop -0.1", 2, "--drop -0.1: model.dropout = -0.1: should be greater than"),
    turn("train tiny.toml --heads 3", 2, "--heads 3: model.n_head = 3 does not divide n_embd = 32", "2 or 4"),
    turn("train tiny.toml --backend gpu", 2, "--backend gpu", "did you mean 'cuda'?"),
    turn("train tiny.toml --set n_head=4", 2, "--set n_head=4", "it belongs in [model]"),
    turn("train tiny.toml --set model.n_head", 2, "expected KEY=VALUE"),
    turn("train tiny.toml --set model.n_hed=4", 2, "--set model.n_hed=4", "did you mean 'n_head'?"),
    turn("train tiny.toml --set model.norm=layer_norm", 2, "did you mean 'layernorm'?"),
    turn("train tiny.toml --set tokenizer=chars", 3, "--set tokenizer=chars", "did you mean 'char'?"),
    turn("train tiny.toml --set model.position=roep", 3, "did you mean 'rope'?"),
    turn("train tiny.toml --set optimizer=adam", 2, "did you mean 'adamw'?"),
    turn("train tiny.toml --name 'my run'", 2, "--name my run", "letters, digits, '_' and '-'"),
    turn("train tiny.toml --steps 3 --epochs 1", 2, "--steps 3 and --epochs 1.0", "keep one of them"),
    turn(
        "train tiny.toml --emb 64 --set model.n_embd=32", 2, "and --emb 64 both set model.n_embd", "keep one"
    ),
    # The experiment file: which
    turn("train tny.toml", 2, "there is no experiment file tny.toml", "did you mean tiny.toml?"),
    turn("train tiny", 2, "there is no experiment file tiny", "did you mean tiny.toml?"),
    turn("train experiments", 2, "is a folder", "There are: "),
    turn("train train.py", 2, "this is a Python file", "TOML", train__py="import torch\nlr = 3\n"),
    turn("train config.json", 2, "JSON", "n_head = 4", config__json='{"model": {"n_head": 4}}'),
    turn("train config.yaml", 2, "YAML", "n_head = 4", config__yaml="model:\n  n_head: 4\n"),
    turn("train novel.txt", 2, "gptkit train EXPERIMENT --dataset novel.txt", novel__txt="Call me Ishmael."),
    experiment(
        TRAIN, 4, "[data]\ndataset = 'shakespaere'\n", "line 2: dataset", "did you mean 'shakespeare'?"
    ),
    experiment(
        TRAIN,
        4,
        "[model]\ncontext_length = 4000\n[data]\ndataset = 'data/mine.txt'\n",
        "line 2: context_length = 4000",
        "the largest model.context_length that fits is",
    ),
    experiment(
        TRAIN,
        2,
        "[sampling]\nprompt = 'Ω'\n[data]\ndataset = 'data/mine.txt'\n",
        "line 2: prompt = 'Ω'",
        "leave them out",
    ),
    turn("train data/mine.txt", 2, "it looks like a text", "--dataset data/mine.txt"),
    # Its contents
    experiment(TRAIN, 2, "[model]\nn_hed = 4\n", "line 2: n_hed = 4", "^^^^^ model.n_hed", "'n_head'"),
    experiment(TRAIN, 2, '[model]\nn_layer = "4"\n', "line 2", "write 4, without quotes"),
    experiment(TRAIN, 2, "[training]\nmax_steps = 1e3\n", "line 2", "write 1000"),
    experiment(TRAIN, 2, '[optimizer]\ntype = "mun"\n', "line 2", "^^^^^ optimizer.type", "'muon'?"),
    experiment(TRAIN, 2, '[training]\nbackend = "gpu"\n', "did you mean 'cuda'?"),
    experiment(TRAIN, 2, "n_head = 4\n", "line 1: n_head = 4", "it belongs in [model]"),
    experiment(TRAIN, 2, "[model]\nseed = 4\n", "it belongs at the top of the file"),
    experiment(TRAIN, 2, "[model]\nblock_size = 64\n", "it is called 'context_length' here"),
    experiment(TRAIN, 2, "[modle]\nn_head = 4\n", "line 1: [modle]", "did you mean 'model'?"),
    experiment(TRAIN, 2, "[model]\nn_embd = 30\n", "line 2: n_embd = 30", "does not divide"),
    experiment(TRAIN, 2, "[model]\nqk_norm = 'yes'\n", "should be true or false"),
    experiment(TRAIN, 2, "[optimizer]\nlearning_rate = 1e6\n", "line 2", "less than or equal to 1000"),
    experiment(TRAIN, 2, "[training]\nmax_steps = 0\n", "greater than or equal to 1"),
    experiment(TRAIN, 2, "[sampling]\nstop = 'END'\n", "should be a list"),
    experiment(TRAIN, 2, "[training]\nepochs = 2\nminutes = 3\n", "line 3: minutes", "keep one of them"),
    experiment(TRAIN, 2, "[model]\nposition = { type = 'rope', bse = 3 }\n", "^^^ model", "'base'?"),
    experiment(TRAIN, 3, "tokenizer = 'chr'\n", "line 1: tokenizer = 'chr'", "did you mean 'char'?"),
    # No TOML
    experiment(TRAIN, 2, "[optimizer]\ntype = muon\n", "line 2: type = muon", 'write "muon", in quotes'),
    experiment(TRAIN, 2, "[model]\nbias = True\n", "line 2: bias = True", "write true"),
    experiment(TRAIN, 2, "[model\nn_head = 4\n", "line 1: [model", "Expected ']' at the end"),
    experiment(TRAIN, 2, "n_head: 4\n", "line 1: n_head: 4", "Expected '=' after a key"),
    experiment(TRAIN, 2, "seed = 1\nseed = 2\n", "line 2: seed = 2", "keep one of them"),
    experiment(TRAIN, 2, "[model]\n[training]\n[model]\n", "line 3: [model]", "keep one of them"),
    experiment(TRAIN, 2, '[data]\ndataset = "C:\\users\\novel"\n', "line 2", "between single quotes"),
    experiment(TRAIN, 2, '[data]\ndataset = "C:\\novel.txt"\n', "line 2", "between single quotes"),
    experiment(TRAIN, 2, "name = “mine”\n", "line 1", "write straight quotes"),
    experiment(TRAIN, 2, "seed = 1".encode("utf-16"), "it is UTF-16: save it as UTF-8"),
    # Texts
    turn("train tiny.toml --dataset nowhere.txt", 4, "there is no dataset or text file 'nowhere.txt'"),
    turn("train tiny.toml --dataset shakespear", 4, "did you mean 'shakespeare'?"),
    turn("train tiny.toml --dataset e.txt", 4, "e.txt is empty", e__txt=""),
    turn("train tiny.toml --dataset s.txt -c 30", 4, "context_length that fits is", s__txt="x" * 50),
    turn("train tiny.toml --dataset u.txt", 4, "not UTF-8", u__txt="a novel".encode("utf-16")),
    turn("train tiny.toml --dataset harry_potter", 4, "gptkit datasets add harry_potter FILE"),
    turn("datasets fetch nosuch", 4, "'nosuch'", "Registered: avatar_script"),
    turn("datasets fetch shakespear", 4, "did you mean 'shakespeare'?"),
    turn("datasets fetch shakespeare", 10, "cannot download"),
    turn("datasets add novel nofile.txt", 4, "there is no file nofile.txt"),
    turn("train tiny.toml --dataset a.txt --dataset b.txt", 2, "a.txt and --dataset b.txt are two answers"),
    turn("train tiny.toml --seed 1 --seed 2", 2, "--seed 1 and --seed 2 are two answers"),
    turn("train tiny.toml --dataset -", 4, "read only once", "gptkit datasets add NAME -"),
    turn("train tiny.toml --dataset runs", 4, "runs is a folder without texts", "run of gptkit: "),
    turn("train tiny.toml --set data.val_fraction=1e-9", 4, "raise data.val_fraction from 1e-09 to"),
    turn("datasets show c.csv", 4, "Its columns: 'id', 'body'", c__csv="id;body\n1;x\n"),
    turn("datasets show c.csv", 4, "one column only, 'text:label'", c__csv="text:label\nx:1\n"),
    turn("datasets lst", 2, "Did you mean 'list'?"),
    # Runs
    turn("generate --runs-dir none", 2, "there are no runs in none", "gptkit train EXPERIMENT"),
    turn("generate goof", 2, "no run 'goof' in runs", "did you mean 'good", "gptkit runs"),
    turn("generate go", 2, "is the beginning of 2 runs", "Type more of the id"),
    turn("generate good- --prompt Ω", 2, "has never seen: 'Ω'", "--unknown skip"),
    turn("generate good- --top-p 0", 2, "--top-p 0.0: top_p = 0.0: should be greater than 0"),
    turn("generate good- --temperature hot", 2, "'--temperature'", "should be a number"),
    turn("generate good- --checkpoint 7", 5, "there is no checkpoint of step 7"),
    turn("generate good- --checkpoint newest", 2, "expected best, last or a step"),
    turn("generate unsaved", 5, "there is no checkpoint"),
    turn("generate data", 2, "data is not a run folder"),
    turn("resume", 2, "Missing argument 'RUN'; as in: gptkit resume latest"),
    turn("resume good- --steps 5", 2, "is at step 20 already", "use more"),
    turn(
        "train tiny.toml --load good- --emb 64",
        2,
        "model.n_embd is 32 there, 64 here",
        "Leave these settings out",
    ),
    turn("train tiny.toml --runs-dir tiny.toml", 6, "tiny.toml is a file", "--runs-dir"),
    turn("runs verify nosuch", 2, "no run 'nosuch' in runs"),
    # Plugins
    turn("plugins show roep", 3, "roep", "did you mean 'rope'?"),
    turn("plugins new tokeniser mine", 2, "did you mean 'tokenizer'?"),
    turn("plugins check rope --set base=hot", 2, "rope.base", "should be a number"),
]


def prepare(root: Path) -> None:
    """A folder with an experiment, a text, and three runs: two finished, one that saved nothing."""
    for name in ("data", "experiments", "runs"):
        (root / name).mkdir()
    (root / "data" / "mine.txt").write_text(small_text())
    (root / "tiny.toml").write_text(TINY)
    (root / "experiments" / "tiny.toml").write_text(TINY)
    for name in ("good", "good2", "unsaved"):
        settings = {**tomllib.loads(TINY), "name": name, "checkpoints": {"save": name != "unsaved"}}
        gptkit.train(experiment_from_dict(settings), runs_folder=root / "runs", data_dir=root)
        for run in (root / "runs").glob(f"{name}.*"):
            run.rename(run.with_name(f"{name}-run"))


def take(turn: Turn, root: Path) -> tuple[int, str, str]:
    """Takes a turn in a folder that is prepared: the exit code and both outputs."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True), io.StringIO()
    put = [root / name for name in turn.files]
    for path, content in zip(put, turn.files.values(), strict=True):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        with chdir(root), pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.delenv("GPTKIT_DATA_DIR", raising=False)
            patch.setattr("gptkit.data.datasets.shakespeare.ShakespeareDataset.url", NOWHERE)
            patch.setattr(sys, "argv", ["gptkit", *shlex.split(turn.words)])
            patch.setattr(sys, "stdin", io.StringIO())
            code = run_command(shlex.split(turn.words))
    finally:
        for path in put:
            path.unlink()
    out.seek(0)
    return code, out.read(), err.getvalue()


def main() -> None:
    os.environ.setdefault("COLUMNS", "110")
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for one in TURNS:
            code, out, err = take(one, Path(folder))
            print(f"$ gptkit {one.words}")
            for name, content in one.files.items():
                print(f"  # {name}: {content[:70]!r}")
            print(f"{out}{err}(exit {code})\n", flush=True)


if __name__ == "__main__":
    main()
