"""The contract of a tokenizer, checked on texts that are hard to get right.

Input: a tokenizer class and its options. Output: a result per check. What the tokenizer reports as unknown
(`unknown_characters`) is removed from the texts first, as gptkit does with a prompt. Imports no torch.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Mapping
from typing import Any, ClassVar
from unittest import SkipTest

import numpy as np
from numpy.typing import NDArray

from gptkit import files
from gptkit.plugins import Splits, Tokenizer
from gptkit.plugins.registry import TOKENIZERS
from gptkit.testing.contract import (
    ContractError,
    PluginContract,
    Verdict,
    calling,
    check,
    describe,
    quote,
    require,
)
from gptkit.testing.edge_cases import OTHER_VAL, SAMPLE, TRAIN, UNSEEN, VAL, all_texts
from gptkit.words import first_difference

_SLOWEST = 20_000  # characters per second: an hour for a text of 70 MB
_MANY_IDS = 3000  # ids that are decoded one by one, at most
_REPLACEMENT = "\ufffd"  # what decode returns for bytes that are not a whole character


class TokenizerContract(PluginContract):
    """The checks of a tokenizer.

    Attributes:
        plugin: the tokenizer class. Set it.
        options: options to check it with; by default those of `plugin.Options.example`.
        texts: more texts to try it on, by name, in addition to those of `gptkit.testing.edge_cases`.
    """

    family = TOKENIZERS
    texts: ClassVar[Mapping[str, str]] = {}

    tokenizer: ClassVar[Any]  # set by test_learns
    known: ClassVar[dict[str, str]]  # set by test_known_characters: texts of known characters, none empty

    @classmethod
    def train(cls, val: str = VAL) -> Any:
        return cls.plugin.train(cls.example, Splits(TRAIN, val))

    @classmethod
    def fingerprint(cls) -> str:
        return _digest(cls.train())

    @check("options")
    def test_learns(self) -> None:
        """`train(options, splits)` returns a tokenizer; its `lossless` is True or False.

        Fix: make `train` work on any text and return an object of the class.
        """
        with calling("train()"):
            tokenizer = self.train()
        require(isinstance(tokenizer, Tokenizer), f"train() returns {quote(tokenizer)}, not a Tokenizer")
        lossless = tokenizer.lossless
        require(isinstance(lossless, bool), f"lossless is {quote(lossless)}, neither True nor False")
        type(self).tokenizer = tokenizer
        self.report(f"from {len(TRAIN):,} characters")

    @check("learns")
    def test_vocabulary(self) -> None:
        """`vocab_size` is a positive int that stays the same.

        Fix: return the number of ids, fixed after training, as a Python int.
        """
        size = self.tokenizer.vocab_size
        right = isinstance(size, int) and not isinstance(size, bool)
        require(right, f"vocab_size is {quote(size)}, a {type(size).__name__}, not an int")
        require(size >= 1, f"vocab_size is {size}; a model needs at least one token")
        require(self.tokenizer.vocab_size == size, f"vocab_size is {size}, then another number")
        self.report(f"{size:,} ids")

    @check("learns")
    def test_known_characters(self) -> None:
        """`unknown_characters(text)` names exactly the characters of the training text that have no ids.

        Fix: return each character that `encode` cannot handle, all at once, and no other.
        """
        tokenizer, text = self.tokenizer, TRAIN + VAL
        with calling("unknown_characters() of the training text"):
            unknown = tokenizer.unknown_characters(text)
        require(isinstance(unknown, str), f"unknown_characters() returns {quote(unknown)}, not a string")
        with calling("unknown_characters() of the training text without those that it named"):
            left = tokenizer.unknown_characters(known_part(tokenizer, text))
        require(not left, f"{quote(left)} is named only when the others are removed")
        type(self).known = _known_texts(tokenizer, self.texts)
        for character in unknown if tokenizer.lossless else "":
            wrong = f"{quote(character)} is named as unknown, yet encode and decode return it"
            require(not _comes_back(tokenizer, character), wrong)
        if not self.known:
            raise SkipTest("it knows no character of the training text")
        count = len(set(text))
        self.report(f"{count - len(unknown)} of the {count} in the training text")

    @check("learns", "vocabulary", "known characters")
    def test_ids(self) -> None:
        """`encode(text)` returns a numpy array of integers, shape (T,), each in [0, vocab_size).

        Fix: return `np.array(ids, dtype=np.int32)`, and count every id in `vocab_size`.
        """
        size, count, types = self.tokenizer.vocab_size, 0, set()
        for name, text in self.known.items():
            what = f"{name}: encode({quote(text)})"
            with calling(what):
                ids = self.tokenizer.encode(text)
            _require_ids(ids, what)
            if len(ids):
                low, high = int(ids.min()), int(ids.max())
                wrong = f"{what} returns id {low if low < 0 else high}, but vocab_size is {size}"
                require(low >= 0 and high < size, wrong)
            count += len(ids)
            types.add(str(ids.dtype))
        self.report(f"{count:,} of type {' and '.join(sorted(types))}, all in range")

    @check("ids")
    def test_empty_text(self) -> None:
        """The empty text has no ids and no unknown characters, and no ids decode to the empty text.

        Fix: add no tokens of your own at the beginning or the end: gptkit expects none.
        """
        ids = self.tokenizer.encode("")
        _require_ids(ids, "encode('')")
        require(len(ids) == 0, f"encode('') returns {quote(ids.tolist())}, not an empty array")
        text = self.tokenizer.decode([])
        require(text == "", f"decode([]) returns {quote(text)}, not ''")
        unknown = self.tokenizer.unknown_characters("")
        require(unknown == "", f"unknown_characters('') returns {quote(unknown)}, not ''")
        self.report("no ids, and back")

    @check("ids")
    def test_same_twice(self) -> None:
        """Training again on the same text, and encoding again, give the same ids and the same JSON.

        Fix: draw no random numbers, keep no state between calls, and break ties in a fixed order.
        """
        self._require_alike(self.train(), "trained twice on the same text")
        self._require_alike(self.tokenizer, "called twice")
        self.report("training and encoding twice return the same")

    def _require_alike(self, other: Any, when: str) -> None:
        first, second = self.tokenizer.to_json(), other.to_json()
        if first != second:
            keys = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
            raise ContractError(f"{when}, to_json() differs at {', '.join(map(repr, keys)) or 'its order'}")
        for name, text in self.known.items():
            same = np.array_equal(self.tokenizer.encode(text), other.encode(text))
            require(same, f"{when}, the ids of {name} differ: {quote(text)}")

    @check("same twice")
    def test_pieces(self) -> None:
        """`encode_stream` yields the ids of `encode`, wherever the text is cut into pieces.

        Fix: hold back what the next piece may change, or leave `encode_stream` to the base class.
        """
        for name, text in self.known.items():
            wanted = self.tokenizer.encode(text).tolist()
            for length in (1, 7, 1000):
                pieces = [text[start : start + length] for start in range(0, len(text), length)]
                what = f"{name}: encode_stream of {quote(text)} in pieces of {length}"
                with calling(what):
                    parts = list(self.tokenizer.encode_stream(iter(pieces)))
                for ids in parts:
                    _require_ids(ids, what)
                found = [token for ids in parts for token in ids.tolist()]
                require(found == wanted, f"{what} yields {quote(found)}, encode returns {quote(wanted)}")
        self.report(f"{len(self.known)} texts, in pieces of 1, 7 and 1000 characters")

    @check("same twice")
    def test_val_unseen(self) -> None:
        """Only the characters of `splits.val` may matter, never how often they occur: val is for evaluation.

        Fix: count in `splits.train` alone; take no more than the set of characters from `splits.val`.
        """
        self._require_alike(self.train(OTHER_VAL), "with another val split of the same characters")
        self.report("another val split makes no difference")

    @check("ids")
    def test_round_trip(self) -> None:
        """`decode(encode(text))` is the text; with `lossless = False`, a second round trip changes nothing.

        Fix: keep white space, case, line ends and combining marks, or set `lossless = False`.
        """
        tokenizer = self.tokenizer
        for name, text in self.known.items():
            with calling(f"{name}: decode(encode({quote(text)}))"):
                back = tokenizer.decode(tokenizer.encode(text).tolist())
            require(isinstance(back, str), f"{name}: decode returns {quote(back)}, not a string")
            wanted = text
            if not tokenizer.lossless:
                with calling(f"{name}: encoding what {quote(text)} comes back as"):
                    wanted, back = back, tokenizer.decode(tokenizer.encode(back).tolist())
            if back != wanted:
                at = first_difference(wanted, back)
                start = max(0, at - 8)
                raise ContractError(
                    f"{name}: {quote(wanted[start : at + 16])} comes back as {quote(back[start : at + 16])} "
                    f"(at character {at:,} of {len(wanted):,})"
                )
        how = "come back" if tokenizer.lossless else "come back changed (lossless is False), but only once"
        self.report(f"{len(self.known)} texts {how}")

    @check("round trip")
    def test_unseen_characters(self) -> None:
        """`unknown_characters(text)` names each character without ids once, sorted or in order of appearance.

        Fix: return the distinct characters of the text that `encode` cannot handle; all others must encode.
        """
        tokenizer, text = self.tokenizer, UNSEEN + SAMPLE[:200] + UNSEEN[::-1]
        what = f"unknown_characters({quote(text)})"
        with calling(what):
            unknown = tokenizer.unknown_characters(text)
        require(isinstance(unknown, str), f"{what} returns {quote(unknown)}, not a string")
        others = set(unknown) - set(text)
        require(not others, f"{what} names {quote(''.join(others))}, which is not in it")
        require(len(set(unknown)) == len(unknown), f"{what} names a character twice: {quote(unknown)}")
        orders = (sorted(unknown), sorted(unknown, key=text.index))
        require(list(unknown) in orders, f"{what} names {quote(unknown)}: neither sorted nor as they appear")
        rest = known_part(tokenizer, text)
        with calling(f"unknown_characters names nothing in {quote(rest)}; encoding it"):
            back = tokenizer.decode(tokenizer.encode(rest).tolist())
        wrong = f"unknown_characters names nothing in {quote(rest)}, which comes back as {quote(back)}"
        require(back == rest or not tokenizer.lossless, wrong)
        self.report(f"names {len(unknown)} of {len(set(UNSEEN))} characters that were not in training")

    @check("ids")
    def test_any_ids(self) -> None:
        """`decode` returns text for any ids in [0, vocab_size), Python's or numpy's; a model may write them.

        Fix: never raise, and decode bytes with `errors="replace"`: bytes that are not a whole character give
        U+FFFD.
        """
        size, random = self.tokenizer.vocab_size, np.random.RandomState(0)
        single = np.arange(size) if size <= _MANY_IDS else random.randint(0, size, _MANY_IDS)
        sequences = [single[at : at + 1] for at in range(len(single))]
        sequences += [random.randint(0, size, count) for count in (2, 3, 5, 8, 100, 1000) for _ in range(5)]
        for ids in sequences:
            _require_decodes(self.tokenizer, ids)
        self.report(f"{sum(map(len, sequences)):,} ids in any order, as Python's integers and numpy's")

    @check("same twice")
    def test_saved_and_loaded(self) -> None:
        """`from_json(to_json())`, through a JSON file, is a tokenizer that does the same.

        Fix: put everything that `encode` and `decode` depend on into `to_json`, as JSON values.
        """
        tokenizer, data = self.tokenizer, self.tokenizer.to_json()
        require(isinstance(data, dict), f"to_json() returns a {type(data).__name__}, not a dict")
        with calling("to_json() as JSON"):
            written = files.to_json(data)
        with calling("from_json(to_json())"):
            again = self.plugin.from_json(files.parse_json(written))
        require(isinstance(again, self.plugin), f"from_json() returns {quote(again)}, not its class")
        require(files.to_json(again.to_json()) == written, "loaded, its to_json() is another")
        sizes = (tokenizer.vocab_size, again.vocab_size)
        require(sizes[0] == sizes[1], f"its vocab_size was {sizes[0]}; loaded, it is {sizes[1]}")
        require(again.lossless == tokenizer.lossless, "loaded, its lossless is another")
        for name, text in self.known.items():
            ids = tokenizer.encode(text)
            same = np.array_equal(again.encode(text), ids)
            require(same, f"{name}: loaded, it has other ids for {quote(text)}")
            same = again.decode(ids.tolist()) == tokenizer.decode(ids.tolist())
            require(same, f"{name}: loaded, it decodes the ids of {quote(text)} differently")
        same = again.unknown_characters(UNSEEN) == tokenizer.unknown_characters(UNSEEN)
        require(same, f"loaded, it names other unknown characters of {quote(UNSEEN)}")
        self.report(f"{len(written):,} bytes of JSON")

    @check("saved and loaded", "options in a file")
    def test_same_elsewhere(self) -> None:
        """Another process, whose PYTHONHASHSEED differs, trains the same tokenizer.

        Fix: sort every set before its order matters; do not use `hash()`.
        """
        here, there = _digest(self.tokenizer), self.subprocess_fingerprint()
        wrong = "a process with another PYTHONHASHSEED trains another tokenizer on the same text"
        require(here == there, wrong)
        self.report(f"the same with another PYTHONHASHSEED: {here[:12]}")

    @check("saved and loaded")
    def test_refuses(self) -> None:
        """`from_json` raises ValueError for a description that is damaged or of another tokenizer.

        Fix: check the type, the keys and the values of `data`, and raise ValueError for anything else.
        """
        good = files.parse_json(files.to_json(self.tokenizer.to_json()))
        damaged: list[tuple[str, dict[str, Any]]] = [("{}", {})] if good else []
        damaged.append(('{"type": "something else"}', {"type": "something else"}))
        for key, value in good.items():
            without = {other: kept for other, kept in good.items() if other != key}
            damaged += [(f"its own JSON without {key!r}", without)] if without else []
            if isinstance(value, str):
                damaged.append((f"its own JSON with {key!r} in a list", {**good, key: [value]}))
        for what, data in damaged:
            try:
                accepted = self.plugin.from_json(copy.deepcopy(data))
            except ValueError:
                continue
            except Exception as error:
                raise ContractError(f"from_json(), given {what}, {describe(error)}") from error
            missing = good.keys() - data.keys() if data.keys() < good.keys() else set()
            optional = len(missing) == 1 and "type" not in missing and data
            require(optional and self._is_valid(accepted, data), f"from_json() accepts {what}")
        self.report(f"{len(damaged)} descriptions that it did not write, with ValueError")

    def _is_valid(self, accepted: Any, data: dict[str, Any]) -> bool:
        """Whether a missing key was optional: its default equals the removed value, or is written back."""
        written = {key: value for key, value in accepted.to_json().items() if value is not None}
        if written == {key: value for key, value in data.items() if value is not None}:
            return True  # another tokenizer, which a run notices by its hash
        tokenizer = self.tokenizer
        return accepted.vocab_size == tokenizer.vocab_size and all(
            np.array_equal(accepted.encode(text), tokenizer.encode(text))
            and accepted.decode(tokenizer.encode(text).tolist())
            == tokenizer.decode(tokenizer.encode(text).tolist())
            for text in self.known.values()
        )

    @check("same twice")
    def test_stream(self) -> None:
        """`stream_decoder()` gives, id by id, the text of `decode`, and never half a character.

        Fix: let `decode` return U+FFFD for an incomplete character, at the end of its text: the default
        StreamDecoder holds such ids back until the character is complete. Or override `stream_decoder`.
        """
        for name, text in self.known.items():
            ids = self.tokenizer.encode(text).tolist()
            whole = self.tokenizer.decode(ids)
            with calling(f"{name}: the stream of {quote(text)}"):
                stream = self.tokenizer.stream_decoder()
                pieces = [*(stream.push(token) for token in ids), stream.finish()]
            for piece in pieces:
                require(isinstance(piece, str), f"{name}: a piece is {quote(piece)}, not a string")
            streamed = "".join(pieces)
            if streamed != whole:
                at = max(0, first_difference(streamed, whole) - 8)
                halves = streamed.count(_REPLACEMENT) > whole.count(_REPLACEMENT)
                raise ContractError(
                    f"{name}, of {quote(text)}: "
                    + ("a character is shown in halves: " if halves else "the pieces give ")
                    + f"{quote(streamed[at : at + 24])}, decode gives {quote(whole[at : at + 24])}"
                )
        self.report(f"{len(self.known)} texts, id by id")

    @check("stream")
    def test_streams_apart(self) -> None:
        """Several stream decoders of a tokenizer work at the same time: samples are drawn in parallel.

        Fix: return a new StreamDecoder from each call of `stream_decoder`, with state of its own.
        """
        tokenizer, names = self.tokenizer, sorted(self.known, key=lambda name: len(self.known[name]))
        chosen = ("joined emoji", "combining marks, composed")  # characters of several bytes
        if not set(chosen) <= set(names):
            chosen = (names[0], names[-1])
        ids = [tokenizer.encode(self.known[name]).tolist()[:500] for name in chosen]
        streams = [tokenizer.stream_decoder(), tokenizer.stream_decoder()]
        pieces: list[list[str]] = [[], []]
        for at in range(max(map(len, ids))):
            for number, stream in enumerate(streams):
                if at < len(ids[number]):
                    pieces[number].append(stream.push(ids[number][at]))
        for number, stream in enumerate(streams):
            text = "".join([*pieces[number], stream.finish()])
            same = text == tokenizer.decode(ids[number])
            require(same, f"two streams at once disturb each other: {quote(text)}")
        self.report("two at once do not disturb each other")

    @check("ids")
    def test_speed(self) -> None:
        """Encoding and decoding reach 20,000 characters per second, measured for about a second.

        Fix: avoid work that grows with the square of the length; cache what each word becomes.
        """
        plain = known_part(self.tokenizer, SAMPLE)
        if not plain:
            raise SkipTest("it knows no character of plain English")
        text = (plain * (20_000 // len(plain) + 1))[:20_000]
        seconds = _seconds(self.tokenizer, text)
        if sum(seconds) < 1:
            text = text * max(1, min(50, int(1 / max(sum(seconds), 1e-6))))
            seconds = _seconds(self.tokenizer, text)
        encodes, decodes = (len(text) / max(taken, 1e-9) for taken in seconds)
        rates = f"encodes {encodes / 1e6:,.2f}, decodes {decodes / 1e6:,.2f} million characters per second"
        require(min(encodes, decodes) >= _SLOWEST, f"{rates}; a text of some megabytes takes many minutes")
        self.report(f"{rates} ({len(text):,} characters)", Verdict.NOTE)


def known_part(tokenizer: Tokenizer, text: str) -> str:
    """The text without the characters that the tokenizer reports as unknown."""
    unknown = tokenizer.unknown_characters(text)
    return text.translate(dict.fromkeys(map(ord, unknown))) if unknown else text


def _known_texts(tokenizer: Tokenizer, more: Mapping[str, str] | None = None) -> dict[str, str]:
    texts = {name: known_part(tokenizer, text) for name, text in (all_texts() | dict(more or {})).items()}
    return {name: text for name, text in texts.items() if text}


def _digest(tokenizer: Tokenizer) -> str:
    """SHA-256 of its JSON and of the ids of the texts."""
    digest = hashlib.sha256(files.to_json(tokenizer.to_json()))
    for name, text in _known_texts(tokenizer).items():
        digest.update(f"\n{name}\n".encode())
        digest.update(np.asarray(tokenizer.encode(text), dtype=np.int64).tobytes())
    return digest.hexdigest()


def _comes_back(tokenizer: Tokenizer, text: str) -> bool:
    try:
        return tokenizer.decode(tokenizer.encode(text).tolist()) == text
    except Exception:
        return False


def _require_ids(ids: object, what: str) -> None:
    require(isinstance(ids, np.ndarray), f"{what} returns a {type(ids).__name__}, not a numpy array")
    assert isinstance(ids, np.ndarray)
    require(ids.dtype.kind in "iu", f"{what} returns {ids.dtype}, not integers")
    require(ids.ndim == 1, f"{what} returns the shape {ids.shape}, not (T,)")


def _require_decodes(tokenizer: Any, ids: NDArray[Any]) -> None:
    plain = ids.tolist()
    what = f"decode({quote(plain)})"
    with calling(what):
        text = tokenizer.decode(plain)
    require(isinstance(text, str), f"{what} returns {quote(text)}, not a string")
    surrogates = any("\ud800" <= character <= "\udfff" for character in text)
    require(not surrogates, f"{what} returns a lone surrogate, which no file can hold: {quote(text)}")
    with calling(f"{what} of numpy integers"):
        other = tokenizer.decode(list(ids))
    require(other == text, f"{what} returns {quote(text)}, but of numpy integers {quote(other)}")


def _seconds(tokenizer: Any, text: str) -> tuple[float, float]:
    """Seconds of encode and of decode."""
    start = time.perf_counter()
    ids = tokenizer.encode(text)
    encoded = time.perf_counter()
    plain = ids.tolist()
    begin = time.perf_counter()
    tokenizer.decode(plain)
    return encoded - start, time.perf_counter() - begin
