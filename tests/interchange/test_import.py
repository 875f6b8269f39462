"""`gptkit import`: published weights become runs with equal logits; what is wrong is refused."""

from __future__ import annotations

import json
import pickle
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptkit.errors import CheckpointError, GptkitError, UsageError
from gptkit.events import RunStatus
from gptkit.interchange.export import export_run
from gptkit.interchange.importing import import_model
from gptkit.interchange.mappings import Target
from gptkit.runs import Run
from gptkit.tokenizers.bpe import small_json
from tests.support import Command

V = 258  # of the tokenizer below


def gpt2_folder(folder: Path, **changes: Any) -> Any:
    """A GPT-2 of random weights, saved by transformers, with a tokenizer; returns the model."""
    return _folder(folder, "GPT2", n_positions=16, n_embd=16, n_layer=2, n_head=2, **changes)


def llama_folder(folder: Path, kind: str = "Llama", **changes: Any) -> Any:
    """As `gpt2_folder`, for a model shaped like Llama."""
    sizes = {"hidden_size": 16, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 4}
    return _folder(folder, kind, **{**sizes, "head_dim": 4, "max_position_embeddings": 16, **changes})


def _folder(folder: Path, kind: str, **settings: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config_class = getattr(transformers, f"{kind}Config")
    settings = {"vocab_size": V, "bos_token_id": None, "eos_token_id": None, **settings}
    name = f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, name)(config_class(**settings)).eval()
        for parameter_name, parameter in model.named_parameters():
            if "q_norm" not in parameter_name and "k_norm" not in parameter_name:
                torch.nn.init.normal_(parameter, 0.1, 0.2)
        model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(small_json([("t", "h"), ("th", "e")])))
    return model


def assert_same_logits(run: Run, theirs: Any, at_most: float = 1e-5) -> None:
    model, _ = run.load()
    tokens = torch.randint(V, (2, 16), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = theirs(tokens).logits[..., :V]
        torch.testing.assert_close(model(tokens), expected, rtol=0, atol=at_most)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        gpt2_folder,
        lambda folder: gpt2_folder(folder, activation_function="gelu", n_inner=40),
        lambda folder: gpt2_folder(folder, vocab_size=272, tie_word_embeddings=False),
        llama_folder,
        lambda folder: llama_folder(folder, num_key_value_heads=2, rms_norm_eps=1e-5),
        lambda folder: llama_folder(folder, attention_bias=True, tie_word_embeddings=True),
        lambda folder: llama_folder(folder, "Qwen3", num_key_value_heads=4),
        lambda folder: llama_folder(folder, "Arcee", rms_norm_eps=1e-6, mlp_bias=True),
    ],
    ids=["gpt2", "gelu, odd width", "padded, untied", "llama", "gqa, eps", "bias, tied", "qwen3", "arcee"],
)
def test_imported_weights_give_equal_logits_and_export_again(
    make: Callable[[Path], Any], tmp_path: Path
) -> None:
    theirs = make(tmp_path / "model")
    done = import_model(tmp_path / "model", name="mine", runs_folder=tmp_path / "runs")
    assert done.run.read_record().status is RunStatus.IMPORTED
    assert_same_logits(done.run, theirs)
    export_run(done.run, done.run.load_model(), Target.HUGGING_FACE, tmp_path / "again")
    second = import_model(tmp_path / "again", name="second", runs_folder=tmp_path / "runs")
    first, again = done.run.checkpoint().model, second.run.checkpoint().model
    assert first.keys() == again.keys()
    assert all(first[name].equal(again[name]) for name in first)


@pytest.mark.slow
def test_an_imported_run_generates_and_is_fine_tuned(workspace: Path, gptkit_command: Command) -> None:
    gpt2_folder(workspace / "model")
    done = gptkit_command("import", "model", "--name", "gpt2")
    assert done.code == 0, done.err
    name = Path(done.out.strip()).name
    assert gptkit_command("generate", name, "-n", 5).code == 0
    assert gptkit_command("runs", "verify", name).code == 0
    listed = gptkit_command("runs")
    assert "imported" in listed.out
    Path("tune.toml").write_text('[data]\ndataset = "mine.txt"\n')  # the model's settings come with --load
    tuned = gptkit_command("train", "tune.toml", "--load", name, "--steps", 3, "-B", 4, "--quiet")
    assert tuned.code == 0, tuned.err
    for command in ("resume", "rerun"):
        refused = gptkit_command(command, name)
        assert refused.code == 2
        assert f"--load {name}" in refused.err


def nanogpt_checkpoint(path: Path, **arguments: Any) -> dict[str, torch.Tensor]:
    """A checkpoint with the names of nanoGPT's train.py; returns its weights."""
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8, "bias": False, "vocab_size": 5}
    sizes |= {"dropout": 0.0, **arguments}
    C = 8
    shapes = {
        "wte.weight": (5, C),
        "wpe.weight": (8, C),
        "h.0.ln_1.weight": (C,),
        "h.0.attn.c_attn.weight": (3 * C, C),
        "h.0.attn.c_proj.weight": (C, C),
        "h.0.ln_2.weight": (C,),
        "h.0.mlp.c_fc.weight": (4 * C, C),
        "h.0.mlp.c_proj.weight": (C, 4 * C),
        "ln_f.weight": (C,),
    }
    weights = {f"_orig_mod.transformer.{name}": torch.randn(shape) for name, shape in shapes.items()}
    weights["_orig_mod.lm_head.weight"] = weights["_orig_mod.transformer.wte.weight"]
    value = {"model": weights, "model_args": sizes, "iter_num": 7, "best_val_loss": torch.tensor(1.5)}
    save = getattr(torch, "save")  # noqa: B009 - a file as nanoGPT writes it
    save(value, path)
    return weights


def characters(path: Path) -> None:
    """meta.pkl as nanoGPT's prepare.py writes it."""
    itos = dict(enumerate("\n abc"))
    meta = {"vocab_size": 5, "itos": itos, "stoi": {letter: number for number, letter in itos.items()}}
    dumps = getattr(pickle, "dumps")  # noqa: B009
    path.write_bytes(dumps(meta))


def test_a_checkpoint_of_nanogpt_is_read_without_running_it(tmp_path: Path) -> None:
    weights = nanogpt_checkpoint(tmp_path / "ckpt.pt")
    characters(tmp_path / "meta.pkl")
    done = import_model(tmp_path / "ckpt.pt", name="nano", runs_folder=tmp_path / "runs")
    model, tokenizer = done.run.load()
    assert tokenizer.decode([2, 3, 4]) == "abc"
    state = model.state_dict()
    assert state["lm_head.weight"].equal(weights["_orig_mod.transformer.wte.weight"])
    assert state["blocks.0.attention.qkv.weight"].equal(
        weights["_orig_mod.transformer.h.0.attn.c_attn.weight"]
    )
    assert state["position.embedding.weight"].equal(weights["_orig_mod.transformer.wpe.weight"])


Damage = Callable[[Path], object]


def edit_config(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def write(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data)


def remove(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names]


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


HUGE_HEADER = struct.pack("<Q", 2**60) + b"{}"

DAMAGES: dict[str, tuple[Damage, str]] = {
    "no config": (remove("config.json"), "no config.json"),
    "config is no JSON": (write("config.json", b"{"), "config.json cannot be read"),
    "config is a list": (write("config.json", b"[]"), "not a JSON object"),
    "config nested": (write("config.json", b"[" * 100_000), "cannot be read"),
    "another architecture": (edit_config(model_type="bert"), "model_type = 'bert'"),
    "huge": (edit_config(n_embd=2**40), "n_embd"),
    "huge but allowed": (edit_config(n_embd=2**20), "has shape"),
    "negative": (edit_config(n_layer=-1), "n_layer"),
    "text for a number": (edit_config(n_head="two"), "n_head"),
    "heads do not divide": (edit_config(n_head=3), "n_head"),
    "nan": (write("config.json", b'{"model_type": "gpt2", "n_embd": NaN}'), "NaN"),
    "another eps": (edit_config(layer_norm_epsilon=1e-3), "layer_norm_epsilon"),
    "more layers than weights": (edit_config(n_layer=3), "no tensor"),
    "no weights": (remove("model.safetensors"), "no model.safetensors"),
    "weights are a pickle": (only_a_pickle, "pickle"),
    "weights cut": (write("model.safetensors", b"\x00" * 20), "cannot be read"),
    "huge header": (write("model.safetensors", HUGE_HEADER), "cannot be read"),
    "a tensor is missing": (
        edit_weights(lambda tensors: tensors.pop("transformer.h.0.ln_1.weight")),
        "no tensor transformer.h.0.ln_1.weight",
    ),
    "another shape": (
        edit_weights(lambda tensors: tensors.update({"transformer.wpe.weight": torch.ones(3, 3)})),
        "has shape (3, 3)",
    ),
    "whole numbers": (
        edit_weights(
            lambda tensors: tensors.update({"transformer.ln_f.bias": torch.ones(16, dtype=torch.int64)})
        ),
        "torch.int64",
    ),
    "weights are not finite": (
        edit_weights(lambda tensors: tensors["transformer.wte.weight"].fill_(float("nan"))),
        "not finite",
    ),
    "an index that leads outside": (
        write("model.safetensors.index.json", b'{"weight_map": {"a": "../../secret"}}'),
        "outside its folder",
    ),
    "no tokenizer": (remove("tokenizer.json"), "no tokenizer"),
    "tokenizer is no tokenizer": (write("tokenizer.json", b"{}"), "not a tokenizer"),
    "tokenizer with more ids": (
        lambda folder: (folder / "tokenizer.json").write_text(
            json.dumps(small_json([("t", "h"), ("th", "e"), ("a", "n"), ("i", "n")]))
        ),
        "do not belong together",
    ),
}


@pytest.fixture(scope="module")
def good_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("import") / "model"
    gpt2_folder(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_and_leaves_nothing(good_folder: Path, tmp_path: Path, name: str) -> None:
    import shutil

    damage, message = DAMAGES[name]
    folder = tmp_path / "model"
    shutil.copytree(good_folder, folder)
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        import_model(folder, name="mine", runs_folder=tmp_path / "runs")
    assert message in str(caught.value), caught.value
    assert len(str(caught.value).splitlines()) <= 3
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_a_name_that_no_run_can_have_is_an_error_of_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'a/b' cannot be the name of a run"):
        import_model(tmp_path, name="a/b", runs_folder=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, ("touch pwned",)


def evil_pickle(path: Path) -> None:
    save = getattr(torch, "save")  # noqa: B009
    save({"model": {"a": Evil()}, "model_args": {}}, path)


@pytest.mark.parametrize(
    "make",
    [
        evil_pickle,
        lambda path: path.write_bytes(b"not a zip"),
        lambda path: nanogpt_checkpoint(path, n_embd=2**23),
        lambda path: nanogpt_checkpoint(path, n_layer=5),
        lambda path: nanogpt_checkpoint(path, n_head=3),
        lambda path: nanogpt_checkpoint(path, bias="yes"),
    ],
    ids=["evil", "no zip", "wide", "deep", "heads", "bias"],
)
def test_a_bad_checkpoint_of_nanogpt_is_refused(
    make: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "ckpt.pt")
    characters(tmp_path / "meta.pkl")
    with pytest.raises(GptkitError) as caught:
        import_model(tmp_path / "ckpt.pt", name="mine", runs_folder=tmp_path / "runs")
    assert caught.value.exit_code == 5
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["nowhere", "--name", "a"], 2), ([".", "--name", "a"], 5), ([".", "--name", "../a"], 2)],
)
def test_the_command_refuses_what_is_no_model(
    workspace: Path, gptkit_command: Command, arguments: list[str], code: int
) -> None:
    assert gptkit_command("import", *arguments).code == code
