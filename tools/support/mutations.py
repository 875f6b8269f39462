"""Makes hostile files from valid ones: bytes, JSON, safetensors headers, experiment files, run folders.

Everything is drawn from a `random.Random`, so that a seed reproduces a file; hypothesis supplies wild values.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import safetensors.torch
import tomli_w
from pydantic import BaseModel

from gptkit.experiment.schema import Experiment, PluginTable
from gptkit.files import sha256, to_json
from gptkit.runs import CHECKPOINTS
from gptkit.runs.checkpoint import MANIFEST, MODEL, OPTIMIZER, STATE

# Small or absurd: a merely large number is legitimate, and would take long to obey
NUMBERS = (0, 1, 2, 3, 5, 8, 16, -1, 0.5, -0.0, 1e-300, 1e308, 2**31 - 1, 2**31, 2**63, 2**64, 10**30)
WORDS = ("", "char", "rope", "muon", "random", "auto", "../x", "/", "\0", "\ud800", "é", "nan", "a" * 5000)
SLOW = ("max_new_tokens", "compile")  # fields with which a valid file could take hours


class _Harmful:
    """Creates a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("unpickled",)


PICKLES = (pickle.dumps(_Harmful()), pickle.dumps(_Harmful(), protocol=0))
HOSTILE = (
    *PICKLES,
    b"",
    b"\xff\xfe\x00",
    b"\0" * 4096,
    b"{}",
    b"[]",
    b"null",
    b'{"a": 1, "a": 2}',
    b"[" * 100_000,
    b'{"a":' * 20_000,
    b'{"step": ' + b"9" * 6000 + b"}",
    b'{"step": NaN, "val_loss": Infinity}',
    b"PK\x03\x04" + b"\0" * 100,
    b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    struct.pack("<Q", 2**62) + b"{}",
    struct.pack("<Q", 99_000_000) + b"{}",
    b"\xef\xbb\xbf{}",
    b"a = 1\n" * 5000,
    b"a." * 5000 + b"a = 1",
    b"a = " + b"[" * 5000,
)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Truncates, flips, repeats, inserts or replaces bytes."""
    at, to = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
    match rng.randrange(8):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + data[to:]
        case 2:
            return data[:to] + data[at:]
        case 3:
            return data[:at] + rng.randbytes(rng.randint(1, 20)) + data[at:]
        case 4:
            return rng.choice(HOSTILE)
        case 5:
            return data[:at] + rng.choice(HOSTILE)[:200] + data[to:]
        case 6:
            digits = [place for place, byte in enumerate(data) if 48 <= byte <= 57] or [0]
            place = rng.choice(digits)
            return (
                data[:place]
                + rng.choice((b"-1", b"0", b"1e999", b"99999999999999", b"x"))
                + data[place + 1 :]
            )
        case _:
            changed = bytearray(data or b"\0")
            for _ in range(rng.randint(1, 4)):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            return bytes(changed)


def mutate_value(value: Any, rng: random.Random, wild: Any) -> Any:
    """Replaces, removes, renames or adds one item somewhere in a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        match rng.randrange(8):
            case 0:
                return {name: inner for name, inner in value.items() if name != key}
            case 1:
                return {**value, rng.choice(WORDS): wild}
            case 2:
                return {(rng.choice(WORDS) if name == key else name): inner for name, inner in value.items()}
            case _:
                return {**value, key: mutate_value(value[key], rng, wild)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], mutate_value(value[at], rng, wild), *value[at + rng.randint(0, 1) :]]
    return rng.choice((wild, rng.choice(NUMBERS), rng.choice(WORDS), None, True, [], {}, [[]], value))


def json_bytes(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "replace")


def mutate_json(data: bytes, rng: random.Random, wild: Any) -> bytes:
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    try:
        return json_bytes(mutate_value(json.loads(data), rng, wild))
    except (ValueError, RecursionError):  # an earlier mutation made it invalid
        return mutate_bytes(data, rng)


def mutate_safetensors(data: bytes, rng: random.Random, wild: Any) -> bytes:
    """Changes the header, its length, or the bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    (size,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + size], data[8 + size :]
    header = mutate_bytes(header, rng) if rng.random() < 0.2 else mutate_json(header, rng, wild)
    length = (
        len(header) if rng.random() < 0.8 else rng.choice((0, 1, len(header) + 1, 2**32, 2**63, 2**64 - 1))
    )
    return struct.pack("<Q", length) + header + body


# Experiment files


PLAUSIBLE: dict[type, tuple[Any, ...]] = {
    int: (1, 2, 3, 4, 8, 16),
    float: (0.1, 0.5, 0.01, 1.0),
    bool: (True, False),
    str: ("x", "\n"),
    PluginTable: (
        "char",
        "byte",
        "bigram",
        "rope",
        "alibi",
        "none",
        "learned",
        "sinusoidal",
        "data/mine.txt",
    ),
}


def _fields_of(model: type[BaseModel], at: tuple[str, ...] = ()) -> dict[tuple[str, ...], list[Any]]:
    """The keys of an experiment file, each with plausible values."""
    found: dict[tuple[str, ...], list[Any]] = {}
    for name, described in model.model_fields.items():
        key, todo = (*at, name), [described.annotation]
        values = found.setdefault(key, [])
        while todo:
            kind = todo.pop()
            if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not PluginTable:
                found |= {
                    inner: [*found.get(inner, []), *known] for inner, known in _fields_of(kind, key).items()
                }
            elif isinstance(kind, type):
                values += PLAUSIBLE.get(kind, ())
            elif isinstance(kind, str):
                values.append(kind)  # of a Literal
            else:
                todo += get_args(kind)
    return found


FIELDS = {key: values for key, values in _fields_of(Experiment).items() if key[-1] not in SLOW}


def mutate_experiment(experiment: dict[str, Any], rng: random.Random, wild: Any) -> bytes:
    """Sets a few fields to other values or tables; the result may be invalid TOML."""
    changed: dict[str, Any] = json.loads(json.dumps(experiment))
    for _ in range(rng.choice((1, 1, 2, 4))):
        *tables, key = path = rng.choice(list(FIELDS)) if rng.random() < 0.9 else (rng.choice(WORDS), "x")
        place = changed
        for table in tables:
            inner = place.setdefault(table, {})
            if not isinstance(inner, dict):
                inner = place[table] = {}
            place = inner
        values = [wild, rng.choice(NUMBERS), rng.choice(WORDS), rng.choice((True, False, [], {}, [1]))]
        plausible = FIELDS.get(tuple(path), [])
        value = rng.choice(plausible if plausible and rng.random() < 0.6 else values)
        place[key] = copy.deepcopy(value)  # otherwise `wild` could contain itself
    try:
        text = tomli_w.dumps(_without_none(changed)).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, AttributeError):
        text = json_bytes(changed)  # not representable as TOML
    return mutate_bytes(text, rng) if rng.random() < 0.2 else text


def _without_none(value: Any) -> Any:
    """TOML has no null."""
    if isinstance(value, dict):
        return {str(key): _without_none(inner) for key, inner in value.items() if inner is not None}
    return (
        [_without_none(inner) for inner in value if inner is not None] if isinstance(value, list) else value
    )


# Run folders


Files = dict[str, bytes]


def read_folder(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_folder(folder: Path, files: Files) -> None:
    """Replaces the folder by exactly these files."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def mutate_run(files: Files, rng: random.Random, wild: Any) -> tuple[Files, list[str]]:
    """Changes one to three files of a run, often with hashes forged to match; returns their names too."""
    changed, names = dict(files), []
    for _ in range(rng.choice((1, 1, 2, 3))):
        known = [name for name in changed if not name.startswith(("samples", "."))]
        name = rng.choice(
            [*known, *(name for name in known if "/" not in name)]
        )  # files outside of checkpoints are twice as likely
        names.append(name)
        data, base = changed[name], Path(name).name
        if rng.random() < 0.05:
            del changed[name]
        elif rng.random() < 0.12:
            changed[name] = rng.choice(HOSTILE)
        elif base in (MODEL, OPTIMIZER):
            whole = len(data) > 8 and rng.random() < 0.9
            changed[name] = mutate_safetensors(data, rng, wild) if whole else rng.choice(PICKLES)
        elif base.endswith(".json"):
            changed[name] = mutate_json(data, rng, wild)
        elif base == "metrics.jsonl":
            lines = data.splitlines() or [b""]
            at = rng.randrange(len(lines))
            lines[at] = mutate_json(lines[at], rng, wild)
            changed[name] = b"\n".join(lines)
        else:
            changed[name] = mutate_bytes(data, rng)
        _forge(changed, name, rng)
    return changed, names


def not_finite(files: Files, step: int, number: float, rng: random.Random) -> tuple[Files, str]:
    """Puts NaN or infinity into a weight of a checkpoint, its hash forged; returns the tensor's name too."""
    folder = f"{CHECKPOINTS}/step-{step:012d}"
    tensors = safetensors.torch.load(files[f"{folder}/{MODEL}"])
    name = rng.choice(sorted(tensors))
    flat = tensors[name].view(-1)
    flat[rng.randrange(len(flat))] = number
    changed = {**files, f"{folder}/{MODEL}": safetensors.torch.save(tensors)}
    _forge_manifest(changed, folder, MODEL)
    return changed, name


def _forge(files: Files, name: str, rng: random.Random) -> None:
    """Makes the hashes in other files match a changed file."""
    folder, base = os.path.split(name)
    if name == "tokenizer.json" and name in files and rng.random() < 0.7:
        try:
            digest = sha256(to_json(json.loads(files[name])))
        except (ValueError, RecursionError):
            return
        for state in [other for other in files if other.endswith(STATE)]:
            try:
                recorded = json.loads(files[state])
                files[state] = json_bytes({**recorded, "tokenizer_sha256": digest})
            except (ValueError, TypeError, RecursionError):
                continue
            _forge_manifest(files, os.path.dirname(state), STATE)
    elif base in (MODEL, OPTIMIZER, STATE) and name in files and rng.random() < 0.8:
        _forge_manifest(files, folder, base)


def _forge_manifest(files: Files, folder: str, base: str) -> None:
    try:
        manifest = json.loads(files[f"{folder}/{MANIFEST}"])
        data = files[f"{folder}/{base}"]
        manifest["files"][base] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    files[f"{folder}/{MANIFEST}"] = json_bytes(manifest)


def disturb_folder(folder: Path, outside: Path, rng: random.Random) -> str:
    """Replaces a file of a run folder by a link, folder or pipe, or adds one; returns a description."""
    paths = [path for path in folder.rglob("*") if not path.is_symlink()]
    victim = rng.choice(paths)
    what = rng.choice(("link to a file", "link to a folder", "folder", "pipe", "more"))
    if what == "more":
        (victim if victim.is_dir() else victim.parent).joinpath("extra.py").write_text("raise SystemExit(1)")
        return f"{what} in {victim.name}"
    if victim.is_dir():
        shutil.rmtree(victim)
    else:
        victim.unlink()
    if what == "folder":
        victim.mkdir()
    elif what == "pipe":
        os.mkfifo(victim)
    else:
        victim.symlink_to(outside / ("file" if what == "link to a file" else ""))
    return f"{victim.name} is a {what}"
