"""What a tokenizer has to do, checked on texts that are hard to get right.

In: a tokenizer class and its options. Out: checks. What it says it does not know (`unknown_characters`) is
left out of the texts first, as gptkit does with a prompt. Uses no torch.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptkit import files
from gptkit.plugins import Splits, Tokenizer
from gptkit.testing.edge_cases import OTHER_VAL, SAMPLE, TRAIN, UNSEEN, VAL, all_texts
from gptkit.testing.runner import Check, DefectError, Note, SkippedError, asked, require, shown
from gptkit.testing.saving import check_refuses, check_saved
from gptkit.testing.streams import check_streams, check_streams_apart
from gptkit.testing.subject import PluginSubject
from gptkit.testing.subprocess_check import digest_elsewhere

_SLOWEST = 20_000  # characters a second: an hour for a text of 70 MB
_MANY_IDS = 3000  # ids that are decoded one by one, at most


@dataclass
class TokenizerSubject(PluginSubject):
    """`tokenizer` and `texts` are set by the check "learns"."""

    tokenizer: Any = field(init=False, default=None)
    texts: dict[str, str] = field(init=False, default_factory=dict)  # by name, of known characters, not empty


def learn(cls: Any, options: Any, val: str = VAL) -> Any:
    return cls.train(options, Splits(TRAIN, val))


def known_part(tokenizer: Tokenizer, text: str) -> str:
    """The text without what the tokenizer says it does not know."""
    unknown = tokenizer.unknown_characters(text)
    return text.translate(dict.fromkeys(map(ord, unknown))) if unknown else text


def known_texts(tokenizer: Tokenizer) -> dict[str, str]:
    texts = {name: known_part(tokenizer, text) for name, text in all_texts().items()}
    return {name: text for name, text in texts.items() if text}


def digest(tokenizer: Tokenizer) -> str:
    """SHA-256 of all that it says of itself and makes of the texts."""
    whole = hashlib.sha256(files.to_json(tokenizer.to_json()))
    for name, text in known_texts(tokenizer).items():
        whole.update(f"\n{name}\n".encode())
        whole.update(np.asarray(tokenizer.encode(text), dtype=np.int64).tobytes())
    return whole.hexdigest()


def check_learns(subject: TokenizerSubject) -> str:
    with asked("train()"):
        tokenizer = learn(subject.cls, subject.options)
    require(isinstance(tokenizer, Tokenizer), f"train() gave {shown(tokenizer)}, not a Tokenizer")
    lossless = tokenizer.lossless
    require(isinstance(lossless, bool), f"lossless is {shown(lossless)}, neither True nor False")
    subject.tokenizer = tokenizer
    return f"from {len(TRAIN):,} characters"


def check_vocab_size(subject: TokenizerSubject) -> str:
    size = subject.tokenizer.vocab_size
    right = isinstance(size, int) and not isinstance(size, bool)
    require(right, f"vocab_size is {shown(size)}, a {type(size).__name__}, not an int")
    require(size >= 1, f"vocab_size is {size}; a model needs at least one token")
    require(
        subject.tokenizer.vocab_size == size, f"vocab_size is {size}, and another number when asked again"
    )
    return f"{size:,} ids"


def check_known_characters(subject: TokenizerSubject) -> str:
    """What it says of the text that it learnt from; here the texts of the other checks are made."""
    tokenizer, text = subject.tokenizer, TRAIN + VAL
    with asked("unknown_characters() of the text that it learnt from"):
        unknown = tokenizer.unknown_characters(text)
    require(isinstance(unknown, str), f"unknown_characters() gave {shown(unknown)}, not a string")
    with asked("unknown_characters(), asked again without those that it named,"):
        left = tokenizer.unknown_characters(known_part(tokenizer, text))
    require(not left, f"names {shown(left)} only when the others that it names are left out")
    subject.texts = known_texts(tokenizer)
    for character in unknown if tokenizer.lossless else "":
        require(
            not _comes_back(tokenizer, character), f"says that it does not know {shown(character)}, and does"
        )
    if not subject.texts:
        raise SkippedError("it knows no character of the text that it learnt from")
    count = len(set(text))
    return f"{count - len(unknown)} of the {count} of the text that it learnt from"


def _comes_back(tokenizer: Tokenizer, text: str) -> bool:
    try:
        return tokenizer.decode(tokenizer.encode(text).tolist()) == text
    except Exception:
        return False


def check_ids(subject: TokenizerSubject) -> str:
    size, count = subject.tokenizer.vocab_size, 0
    kinds = set()
    for name, text in subject.texts.items():
        with asked(f"{name}: encode({shown(text)})"):
            ids = subject.tokenizer.encode(text)
        _require_ids(ids, f"{name}: encode({shown(text)})")
        if len(ids):
            low, high = int(ids.min()), int(ids.max())
            out = low if low < 0 else high
            right = low >= 0 and high < size
            require(right, f"{name}: encode({shown(text)}) gives id {out}, and vocab_size is {size}")
        count += len(ids)
        kinds.add(str(ids.dtype))
    return f"{count:,} of type {' and '.join(sorted(kinds))}, all in range"


def _require_ids(ids: object, what: str) -> None:
    require(isinstance(ids, np.ndarray), f"{what} gives a {type(ids).__name__}, not a numpy array")
    assert isinstance(ids, np.ndarray)
    require(ids.dtype.kind in "iu", f"{what} gives {ids.dtype}, not integers")
    require(ids.ndim == 1, f"{what} gives the shape {ids.shape}, not (T,)")


def check_empty(subject: TokenizerSubject) -> str:
    ids = subject.tokenizer.encode("")
    _require_ids(ids, "encode('')")
    require(len(ids) == 0, f"encode('') gives {shown(ids.tolist())}, not nothing")
    text = subject.tokenizer.decode([])
    require(text == "", f"decode([]) gives {shown(text)}, not ''")
    unknown = subject.tokenizer.unknown_characters("")
    require(unknown == "", f"unknown_characters('') gives {shown(unknown)}, not ''")
    return "no ids, and back"


def check_round_trip(subject: TokenizerSubject) -> str:
    tokenizer = subject.tokenizer
    for name, text in subject.texts.items():
        with asked(f"{name}: decode(encode({shown(text)}))"):
            back = tokenizer.decode(tokenizer.encode(text).tolist())
        require(isinstance(back, str), f"{name}: decode gives {shown(back)}, not a string")
        wanted = text
        if not tokenizer.lossless:
            with asked(f"{name}: what {shown(text)} comes back as, encoded again,"):
                wanted, back = back, tokenizer.decode(tokenizer.encode(back).tolist())
        _require_same(name, wanted, back)
    how = "come back" if tokenizer.lossless else "come back changed (lossless is False), but only once"
    return f"{len(subject.texts)} texts {how}"


def _require_same(name: str, wanted: str, got: str) -> None:
    if got == wanted:
        return
    pairs = enumerate(zip(wanted, got, strict=False))
    at = next((at for at, (one, other) in pairs if one != other), min(len(wanted), len(got)))
    start = max(0, at - 8)
    raise DefectError(
        f"{name}: {shown(wanted[start : at + 16])} comes back as {shown(got[start : at + 16])} "
        f"(at character {at:,} of {len(wanted):,})"
    )


def check_unseen(subject: TokenizerSubject) -> str:
    tokenizer, text = subject.tokenizer, UNSEEN + SAMPLE[:200] + UNSEEN[::-1]
    what = f"unknown_characters({shown(text)})"
    with asked(what):
        unknown = tokenizer.unknown_characters(text)
    require(isinstance(unknown, str), f"{what} gives {shown(unknown)}, not a string")
    strange = set(unknown) - set(text)
    require(not strange, f"{what} names {shown(''.join(strange))}, which is not in it")
    require(len(set(unknown)) == len(unknown), f"{what} names a character twice: {shown(unknown)}")
    orders = (sorted(unknown), sorted(unknown, key=text.index))
    require(list(unknown) in orders, f"{what} names {shown(unknown)}: neither sorted nor as they appear")
    rest = known_part(tokenizer, text)
    with asked(f"unknown_characters names nothing in {shown(rest)}; encode"):
        back = tokenizer.decode(tokenizer.encode(rest).tolist())
    if tokenizer.lossless:
        right = back == rest
        require(
            right, f"unknown_characters names nothing in {shown(rest)}, which comes back as {shown(back)}"
        )
    return f"names {len(unknown)} of the {len(set(UNSEEN))} characters that it has not seen"


def _require_alike(one: Any, other: Any, texts: dict[str, str], when: str) -> None:
    """Raises DefectError where two tokenizers differ in what they say of themselves or make of texts."""
    first, second = one.to_json(), other.to_json()
    if first != second:
        keys = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
        raise DefectError(f"{when}, to_json() differs at {', '.join(map(repr, keys)) or 'its order'}")
    for name, text in texts.items():
        same = np.array_equal(one.encode(text), other.encode(text))
        require(same, f"{when}, the ids of {name} differ: {shown(text)}")


def check_same_twice(subject: TokenizerSubject) -> str:
    again = learn(subject.cls, subject.options)
    _require_alike(subject.tokenizer, again, subject.texts, "trained twice on the same text")
    _require_alike(subject.tokenizer, subject.tokenizer, subject.texts, "asked twice")
    return "trained and asked twice, it says the same"


def check_same_elsewhere(subject: TokenizerSubject) -> str:
    here, there = digest(subject.tokenizer), digest_elsewhere(subject)
    wrong = (
        "a process with another PYTHONHASHSEED makes another tokenizer of the same text: sort what is a set"
    )
    require(here == there, wrong)
    return f"the same with another PYTHONHASHSEED: {here[:12]}"


def check_val(subject: TokenizerSubject) -> str:
    other = learn(subject.cls, subject.options, OTHER_VAL)
    when = "with another val split of the same characters"
    _require_alike(subject.tokenizer, other, subject.texts, when)
    return "another val split makes no difference"


def check_any_ids(subject: TokenizerSubject) -> str:
    tokenizer, size = subject.tokenizer, subject.tokenizer.vocab_size
    random = np.random.RandomState(0)
    single = np.arange(size) if size <= _MANY_IDS else random.randint(0, size, _MANY_IDS)
    ids = [single[at : at + 1] for at in range(len(single))]
    ids += [random.randint(0, size, count) for count in (2, 3, 5, 8, 100, 1000) for _ in range(5)]
    for some in ids:
        _require_decodes(tokenizer, some)
    return f"{sum(map(len, ids)):,} ids in any order, as Python's numbers and numpy's"


def _require_decodes(tokenizer: Any, ids: NDArray[Any]) -> None:
    plain = ids.tolist()
    what = f"decode({shown(plain)})"
    with asked(what):
        text = tokenizer.decode(plain)
    require(isinstance(text, str), f"{what} gives {shown(text)}, not a string")
    half = any("\ud800" <= character <= "\udfff" for character in text)
    require(not half, f"{what} gives half a character, which no file can hold: {shown(text)}")
    with asked(f"{what}, of numpy's integers,"):
        other = tokenizer.decode(list(ids))
    require(other == text, f"{what} gives {shown(text)}, but of numpy's integers {shown(other)}")


def check_speed(subject: TokenizerSubject) -> str | Note:
    """On as much of a megabyte as takes about a second."""
    plain = known_part(subject.tokenizer, SAMPLE)
    if not plain:
        raise SkippedError("it knows no character of plain English")
    text = (plain * (20_000 // len(plain) + 1))[:20_000]
    seconds, rates = _timed(subject.tokenizer, text)
    if seconds < 1:
        text = text * max(1, min(50, int(1 / max(seconds, 1e-6))))
        _, rates = _timed(subject.tokenizer, text)
    said = f"encodes {rates[0] / 1e6:,.2f}, decodes {rates[1] / 1e6:,.2f} million characters a second"
    require(min(rates) >= _SLOWEST, f"{said}; a text of some megabytes would take many minutes")
    return Note(f"{said} ({len(text):,} characters)")


def _timed(tokenizer: Any, text: str) -> tuple[float, tuple[float, float]]:
    """Seconds in all, and characters a second of encode and decode."""
    start = time.perf_counter()
    ids = tokenizer.encode(text)
    encoded = time.perf_counter()
    plain = ids.tolist()
    begin = time.perf_counter()
    tokenizer.decode(plain)
    end = time.perf_counter()
    rates = (len(text) / max(encoded - start, 1e-9), len(text) / max(end - begin, 1e-9))
    return end - start, rates


CHECKS: tuple[Check[TokenizerSubject], ...] = (
    Check("learns", check_learns, ("options",)),
    Check("vocabulary", check_vocab_size, ("learns",)),
    Check("known characters", check_known_characters, ("learns",)),
    Check("ids", check_ids, ("learns", "vocabulary", "known characters")),
    Check("empty text", check_empty, ("ids",)),
    Check("same twice", check_same_twice, ("ids",)),
    Check("val unseen", check_val, ("same twice",)),
    Check("round trip", check_round_trip, ("ids",)),
    Check("unseen characters", check_unseen, ("round trip",)),
    Check("any ids", check_any_ids, ("ids",)),
    Check("saved and loaded", check_saved, ("same twice",)),
    Check("same elsewhere", check_same_elsewhere, ("saved and loaded", "options in a file")),
    Check("refuses", check_refuses, ("saved and loaded",)),
    Check("stream", check_streams, ("same twice",)),
    Check("streams apart", check_streams_apart, ("stream",)),
    Check("speed", check_speed, ("ids",)),
)
