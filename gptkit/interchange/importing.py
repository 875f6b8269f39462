"""Makes a run of published weights: a folder of Hugging Face's layout, or nanoGPT's ckpt.pt.

Input: a path, which may hold anything. Output: a run with one checkpoint, to generate from, to fine-tune with
`train --load`, to export again; or a CheckpointError with what is wrong and where. No code of the other
side runs, memory is bounded by the sizes that the files really have, and nothing is left behind after an
error. Knows nothing of terminals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from gptkit.errors import CheckpointError, ExperimentError, UsageError
from gptkit.events import RunStatus
from gptkit.experiment.load import experiment_from_dict, to_toml
from gptkit.experiment.schema import Experiment
from gptkit.files import disk, name_problem
from gptkit.interchange.parts import state_dict_of
from gptkit.interchange.published import Source, read_weights
from gptkit.model.build import build_model_for, load_weights
from gptkit.pickles import read_pickle
from gptkit.plugins import Tokenizer
from gptkit.runs import Run, RunRecord, create_run, lock_run, tokenizer_hash
from gptkit.runs.checkpoint import save_checkpoint
from gptkit.runs.environment import record_experiment
from gptkit.runs.record import ImportedFrom, TokenizerRecord, read_json_object
from gptkit.tokenizers.bpe import byte_level_json
from gptkit.tokenizers.char import CharTokenizer
from gptkit.tokenizers.huggingface import HuggingFaceTokenizer
from gptkit.training.budget import TrainingProgress

_MAX_CHARACTERS = 10_000_000  # bytes of a table of characters
_MAX_VOCABULARY = 100_000_000  # bytes
_PROMPTS = ("\n", "The", "a", " ")  # the run's prompt is the first of these that has ids


@dataclass(frozen=True)
class Imported:
    """The run that was made, and what differs from the original."""

    run: Run
    kind: str
    parameters: int
    notes: tuple[str, ...]


def import_model(path: Path, *, name: str, runs_folder: Path, tokenizer: Path | None = None) -> Imported:
    """Makes a run of the weights at `path`, with the tokenizer there or at the path `tokenizer`.

    Raises CheckpointError with what is wrong, UsageError for a path or name that cannot be used, DiskError.
    """
    if not path.exists():
        raise UsageError(f"there is no {path}. Pass a folder of Hugging Face's layout, or nanoGPT's ckpt.pt.")
    if problem := name_problem(name):
        raise UsageError(f"{name!r} cannot be the name of a run: it {problem}.")
    source = read_weights(path)
    vocabulary, table = _read_tokenizer(tokenizer or path, source.kind)
    source = _fit_vocabulary(source, vocabulary.vocab_size)
    experiment = _experiment(name, source, table, vocabulary)
    tensors = state_dict_of(
        source.parts, layer_norms=source.model["norm"] == "layernorm", bias=source.model["bias"]
    )
    if source.model["tie_embeddings"]:
        del tensors["lm_head.weight"]  # the embedding
    model = build_model_for(experiment, vocabulary.vocab_size, tensors, str(path))
    load_weights(model, tensors, str(path))
    run = _write_run(experiment, source, vocabulary, tensors, model.parameter_count, runs_folder, path)
    return Imported(run, source.kind, model.parameter_count, source.notes)


# Tokenizer


def _read_tokenizer(path: Path, kind: str) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer of a folder or file, and the [tokenizer] table that stands for it.

    Known are tokenizer.json, GPT-2's vocab.json with merges.txt, and the meta.pkl of nanoGPT's characters.
    """
    folder = path if path.is_dir() else path.parent
    named = path if path.is_file() and path.name in ("tokenizer.json", "meta.pkl") else None
    if named is None and path.is_file() and kind != "nanoGPT":
        named = path
    candidates = [named] if named else [folder / "tokenizer.json", folder / "meta.pkl", folder / "vocab.json"]
    found = next((candidate for candidate in candidates if candidate and candidate.is_file()), None)
    if found is None:
        raise CheckpointError(
            f"there is no tokenizer in {folder}: neither tokenizer.json, vocab.json nor nanoGPT's meta.pkl.\n"
            "Pass one with --tokenizer. A tokenizer.model becomes a tokenizer.json by "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    try:
        if found.name == "meta.pkl":
            return _nanogpt_characters(found), {"type": "char"}
        if found.name == "vocab.json":
            data = _gpt2_tokenizer(found)
        else:
            data = read_json_object(found, max_bytes=_MAX_VOCABULARY)
        return HuggingFaceTokenizer(data), {"type": "hf", "path": str(found.absolute())}
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{found} is not a tokenizer that gptkit can use: {error}.") from error


def _gpt2_tokenizer(vocabulary: Path) -> dict[str, Any]:
    """GPT-2's older two files as one tokenizer.json. Raises ValueError, OSError."""
    merges = vocabulary.with_name("merges.txt")
    if not merges.is_file() or merges.stat().st_size > _MAX_VOCABULARY:
        raise ValueError("there is no merges.txt beside it")
    lines = merges.read_text("utf-8").splitlines()
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    return byte_level_json(read_json_object(vocabulary, max_bytes=_MAX_VOCABULARY), pairs)


def _nanogpt_characters(path: Path) -> CharTokenizer:
    """Raises ValueError, OSError."""
    if path.stat().st_size > _MAX_CHARACTERS:
        raise ValueError("it is too large")
    value = read_pickle(path.read_bytes())
    characters = value.get("itos") if isinstance(value, dict) else None
    if not isinstance(characters, dict) or sorted(characters) != list(range(len(characters))):
        raise ValueError("it has no table of characters")
    ordered = "".join(str(characters[number]) for number in range(len(characters)))
    if len(ordered) != len(characters):
        raise ValueError("a token of it is not a character")
    return CharTokenizer.from_json({"type": "char", "characters": ordered})


def _fit_vocabulary(source: Source, tokens: int) -> Source:
    """Leaves out the rows behind the tokenizer's last id, which many models have as padding."""
    rows = source.parts.embedding.size(0)
    if rows < tokens:
        raise CheckpointError(
            f"the tokenizer has {tokens} ids, and the model only {rows}: they do not belong together.\n"
            "Pass the model's own tokenizer with --tokenizer."
        )
    if rows == tokens:
        return source
    head = source.parts.head
    parts = replace(
        source.parts,
        embedding=source.parts.embedding[:tokens].clone(),
        head=None if head is None else head[:tokens].clone(),
    )
    note = f"the {rows - tokens} rows of its vocabulary behind the tokenizer's last id were left out"
    return replace(source, parts=parts, notes=(*source.notes, note))


# The run


def _experiment(name: str, source: Source, table: dict[str, Any], tokenizer: Tokenizer) -> Experiment:
    prompt = next((text for text in _PROMPTS if len(tokenizer.encode(text))), "")
    prompt = prompt or tokenizer.decode([0]) or " "
    settings = {
        "name": name,
        "seed": 0,
        "tokenizer": table,
        "model": source.model,
        "sampling": {"prompt": prompt},
    }
    try:
        experiment = experiment_from_dict(settings, name="the imported model")
    except ExperimentError as error:
        raise CheckpointError(f"gptkit has no model of this shape: {error}") from error
    model = experiment.model
    usual = model.model_copy(update={"mlp_hidden": "auto"})
    if model.hidden_width == usual.hidden_width:  # so that other experiments compare equal
        experiment = experiment.model_copy(update={"model": usual})
    return experiment


def _write_run(
    experiment: Experiment,
    source: Source,
    tokenizer: Tokenizer,
    tensors: Mapping[str, Tensor],
    parameters: int,
    runs_folder: Path,
    path: Path,
) -> Run:
    """The run's folder, which is removed again if an error is raised."""
    run = create_run(runs_folder, stem=experiment.name, experiment_toml=to_toml(experiment))
    try:
        with lock_run(run):
            run.write_tokenizer(tokenizer)
            save_checkpoint(
                run.checkpoints,
                run_id=run.id,
                step=0,
                model=dict(tensors),
                optimizer={},
                state={
                    "step": 0,
                    "progress": TrainingProgress().to_json(),
                    "tokenizer_sha256": tokenizer_hash(tokenizer),
                },
            )
            now = datetime.now().astimezone().isoformat(timespec="microseconds")
            record = RunRecord(
                format=1,
                id=run.id,
                name=experiment.name,
                status=RunStatus.IMPORTED,
                started=now,
                tokenizer=TokenizerRecord(
                    type=experiment.tokenizer.type,
                    vocab_size=tokenizer.vocab_size,
                    sha256=tokenizer_hash(tokenizer),
                ),
                parameters=parameters,
                step=0,
                last_checkpoint=0,
                imported_from=ImportedFrom(kind=source.kind, path=str(path)),
            )
            record_experiment(record, experiment)
            run.write_record(record)
    except BaseException:
        disk.remove_folder(run.path)
        raise
    return run
