"""`gptkit export`: files that other programs open, whole or not there."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptkit.cli.app import run_command
from gptkit.interchange.export import Precision, export_run
from gptkit.interchange.mappings import Target
from gptkit.interchange.verify import tokens_to_compare, verify_export
from gptkit.plugins import DataFolders
from gptkit.runs import Run, find_run
from tests.support import Command

FAST = ("--steps", "4", "--ctx", "16", "--emb", "16", "--heads", "2", "-b", "1", "-B", "4", "--quiet")


@pytest.fixture(scope="module")
def workspace_of_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of the default recipe: `char` and `bpe` by tokenizer, `alibi` not exportable."""
    from tests.support import small_text

    folder = tmp_path_factory.mktemp("export")
    (folder / "mine.txt").write_text(small_text())
    (folder / "e.toml").write_text('[data]\ndataset = "mine.txt"\n')
    runs = ["--data-dir", str(folder), "--runs-dir", str(folder / "runs")]
    for name, more in (
        ("char", []),
        ("bpe", ["--set", "tokenizer.type=bpe", "--set", "tokenizer.vocab_size=260"]),
        ("alibi", ["--set", "model.position=alibi"]),
    ):
        assert run_command(["train", str(folder / "e.toml"), *FAST, *runs, "--name", name, *more]) == 0
    return folder


@pytest.fixture
def runs(workspace_of_module: Path) -> Path:
    return workspace_of_module / "runs"


@pytest.mark.slow
@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("name", ["char", "bpe"])
def test_transformers_agrees_with_an_exported_run(
    runs: Path, tmp_path: Path, name: str, precision: Precision
) -> None:
    pytest.importorskip("transformers")
    run = find_run(name, runs)
    loaded = run.load_model()
    exported = export_run(run, loaded, Target.HUGGING_FACE, tmp_path / "out", precision)
    assert exported.architecture == "Qwen3ForCausalLM"
    tokens = tokens_to_compare(run, loaded.tokenizer, DataFolders([runs.parent], runs.parent))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers
        found = verify_export(exported, loaded.model, loaded.tokenizer, tokens.ids, "a")
    assert tokens.origin == "the val split"
    assert found.agrees
    assert found.greedy_equal == found.greedy_tokens == 200
    assert found.same_ids
    assert found.largest_difference < 1e-5


@pytest.mark.slow
def test_a_changed_weight_is_found(runs: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    run = find_run("char", runs)
    loaded = run.load_model()
    exported = export_run(run, loaded, Target.HUGGING_FACE, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][1] += 0.01
    save_file(tensors, file, metadata={"format": "pt"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = verify_export(exported, loaded.model, loaded.tokenizer, list(range(8)), "a")
    assert not found.agrees


@pytest.mark.slow
def test_transformers_has_the_loss_that_evaluate_prints(
    runs: Path, tmp_path: Path, gptkit_command: Command
) -> None:
    transformers: Any = pytest.importorskip("transformers")
    run = find_run("char", runs)
    export_run(run, run.load_model(), Target.HUGGING_FACE, tmp_path / "out")
    done = gptkit_command("evaluate", run.id, "--json", "--runs-dir", runs, "--data-dir", runs.parent)
    assert done.code == 0, done.err
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = (runs.parent / "mine.txt").read_text()
    ids = torch.tensor(tokenizer.encode(text[int(len(text) * 0.9) :]))
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, 16):
            window = ids[start : start + 17]
            logits = model(window[:-1].unsqueeze(0)).logits[0]
            total += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    assert json.loads(done.out)["loss"] == pytest.approx(total / (len(ids) - 1), abs=1e-5)


def test_the_folder_has_what_transformers_and_the_hub_read(runs: Path, tmp_path: Path) -> None:
    run = find_run("char", runs)
    export_run(run, run.load_model(), Target.HUGGING_FACE, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["max_position_embeddings"] == 16
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert run.read_record().dataset.sha256 in card
    assert "n_embd = 16" in card


def test_gguf_holds_the_sizes_the_vocabulary_and_every_tensor(runs: Path, tmp_path: Path) -> None:
    gguf: Any = pytest.importorskip("gguf")
    run = find_run("char", runs)
    loaded = run.load_model()
    path = tmp_path / "model.gguf"
    export_run(run, loaded, Target.GGUF, path)
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.architecture"].contents() == "qwen3"
    assert reader.fields["qwen3.context_length"].contents() == 16
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == loaded.tokenizer.vocab_size
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    state = loaded.model.state_dict()
    assert tensors["token_embd.weight"].equal(state["token_embedding.weight"])
    q, k, _v = state["blocks.0.attention.qkv.weight"].chunk(3)
    assert tensors["blk.0.attn_q.weight"].equal(q)
    assert tensors["blk.0.attn_k.weight"].equal(k)
    up = state["blocks.0.mlp.up.weight"]
    assert tensors["blk.0.ffn_gate.weight"].equal(up * 1024)
    assert tensors["blk.0.ffn_up.weight"].equal(up)


def test_the_command_says_where_and_refuses_what_is_there(
    runs: Path, tmp_path: Path, gptkit_command: Command
) -> None:
    out = tmp_path / "out"
    done = gptkit_command("export", "char", out, "--no-verify", "--runs-dir", runs)
    assert (done.code, done.out.strip()) == (0, str(out))
    again = gptkit_command("export", "char", out, "--no-verify", "--runs-dir", runs)
    assert again.code == 2
    assert "exists already" in again.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["alibi", "out"], 2, 'model.position = "rope"'),
        (["char", "out", "--to", "onnx"], 2, "expected hf or gguf"),
        (["char", "out.gguf"], 2, "add --to gguf"),
        (["char", "out", "--precision", "int8"], 2, "expected fp32 or bf16"),
        (["char", "out", "--checkpoint", "3"], 5, "no checkpoint of step 3"),
        (["nothing", "out"], 2, "no run"),
        (["char", "/proc/nowhere/out"], 6, "cannot write|disk error"),
    ],
)
def test_wrong_exports_are_refused_and_leave_nothing(
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gptkit_command: Command,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = gptkit_command("export", *arguments, "--no-verify", "--runs-dir", runs)
    assert done.code == code
    assert any(part in done.err for part in message.split("|"))
    assert list(tmp_path.iterdir()) == []


def test_random_tokens_stand_in_for_a_text_that_is_not_here(runs: Path, tmp_path: Path) -> None:
    run: Run = find_run("char", runs)
    tokenizer = run.tokenizer()
    tokens = tokens_to_compare(run, tokenizer, DataFolders([tmp_path], tmp_path))
    assert tokens.origin == "random text"
    assert max(tokens.ids) < tokenizer.vocab_size
