"""A tokenizer and its JSON: it comes back from what it wrote, and takes nothing else.

In: a tokenizer that has learnt. Out: checks.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from gptkit import files
from gptkit.conformance.lines import DefectError, asked, raised, require, shown
from gptkit.conformance.nasty import UNSEEN


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
        _require_refused(subject.cls, what, data, good)
    return f"{len(damaged)} descriptions that it did not write, with ValueError"


def _require_refused(cls: Any, what: str, data: dict[str, Any], good: dict[str, Any]) -> None:
    try:
        taken = cls.from_json(copy.deepcopy(data))
    except ValueError:
        return
    except Exception as error:
        raise DefectError(f"from_json(), given {what}, {raised(error)}, not ValueError") from error
    if data and data.keys() < good.keys() and files.to_json(taken.to_json()) == files.to_json(good):
        return  # the key has a default, and that is what stood there
    raise DefectError(f"from_json() takes {what}; it should raise ValueError")
