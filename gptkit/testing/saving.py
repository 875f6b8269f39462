"""A tokenizer and its JSON: it comes back from what it wrote, and takes nothing else.

In: a tokenizer that has learnt. Out: checks.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from gptkit import files
from gptkit.testing.edge_cases import UNSEEN
from gptkit.testing.runner import DefectError, asked, raised, require, shown


def check_saved(subject: Any) -> str:
    """`subject` has `cls`, `tokenizer` and `texts`, as with all checks of tokenizers."""
    tokenizer = subject.tokenizer
    described = tokenizer.to_json()
    require(isinstance(described, dict), f"to_json() gives a {type(described).__name__}, not a dict")
    with asked("to_json() as JSON"):
        data = files.to_json(described)
    with asked("from_json(), with what to_json() gave,"):
        again = subject.cls.from_json(files.parse_json(data))
    require(isinstance(again, subject.cls), f"from_json() gives {shown(again)}, not one of its class")
    require(files.to_json(again.to_json()) == data, "loaded, its to_json() is another")
    sizes = (tokenizer.vocab_size, again.vocab_size)
    require(sizes[0] == sizes[1], f"its vocab_size was {sizes[0]}; loaded, it is {sizes[1]}")
    require(again.lossless == tokenizer.lossless, "loaded, its lossless is another")
    for name, text in subject.texts.items():
        ids = tokenizer.encode(text)
        require(
            np.array_equal(again.encode(text), ids), f"{name}: loaded, it has other ids for {shown(text)}"
        )
        same = again.decode(ids.tolist()) == tokenizer.decode(ids.tolist())
        require(same, f"{name}: loaded, it decodes the ids of {shown(text)} to something else")
    same = again.unknown_characters(UNSEEN) == tokenizer.unknown_characters(UNSEEN)
    require(same, f"loaded, it names other unknown characters of {shown(UNSEEN)}")
    return f"{len(data):,} bytes of JSON"


def check_refuses(subject: Any) -> str:
    """Its tokenizer.json may have been damaged, or be another's; a run has to say so."""
    good = files.parse_json(files.to_json(subject.tokenizer.to_json()))
    damaged: list[tuple[str, dict[str, Any]]] = [("{}", {})] if good else []
    damaged.append(('{"type": "something else"}', {"type": "something else"}))
    for key, value in good.items():
        without = {other: kept for other, kept in good.items() if other != key}
        damaged += [(f"what it wrote without {key!r}", without)] if without else []
        if isinstance(value, str):
            damaged.append((f"what it wrote with {key!r} in a list", {**good, key: [value]}))
    for what, data in damaged:
        _require_refused(subject, what, data, good)
    return f"{len(damaged)} descriptions that it did not write, with ValueError"


def _require_refused(subject: Any, what: str, data: dict[str, Any], good: dict[str, Any]) -> None:
    try:
        taken = subject.cls.from_json(copy.deepcopy(data))
    except ValueError:
        return
    except Exception as error:
        raise DefectError(f"from_json(), given {what}, {raised(error)}, not ValueError") from error
    missing = good.keys() - data.keys() if data.keys() < good.keys() else set()
    if len(missing) == 1 and "type" not in missing and data:
        if _said(taken.to_json()) == _said(data):
            return  # it is taken at its word: another tokenizer, which the run sees by its hash
        if _same(taken, subject):
            return  # the key has a default, and that is what stood there
    raise DefectError(f"from_json() takes {what}; it should raise ValueError")


def _said(data: dict[str, Any]) -> dict[str, Any]:
    """What is said in a description; null says as much as no key."""
    return {key: value for key, value in data.items() if value is not None}


def _same(taken: Any, subject: Any) -> bool:
    """Whether it does all as the tokenizer that has learnt does it."""
    tokenizer = subject.tokenizer
    return taken.vocab_size == tokenizer.vocab_size and all(
        np.array_equal(taken.encode(text), tokenizer.encode(text))
        and taken.decode(taken.encode(text).tolist()) == tokenizer.decode(tokenizer.encode(text).tolist())
        for text in subject.texts.values()
    )
