"""Tokenizers with one defect each, a few odd ones that are right, and which check has to find it.

They are in a module of their own because another process imports them too.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, field_serializer

from gptkit.plugins import PluginOptions, Splits, StreamDecoder, Tokenizer
from gptkit.tokenizers.bigram import BigramTokenizer
from gptkit.tokenizers.byte import ByteTokenizer
from gptkit.tokenizers.char import CharTokenizer

# What any plugin may do wrong


class Duck:
    summary = "looks like a tokenizer"
    Options = PluginOptions


class LacksDecode(ByteTokenizer):
    decode = Tokenizer.decode
    __abstractmethods__ = frozenset({"decode"})


class NoSummary(ByteTokenizer):
    summary = " "


class LongSummary(ByteTokenizer):
    summary = "bytes\nof UTF-8"


class OtherOptions(ByteTokenizer):
    class Options(BaseModel):  # type: ignore[assignment]
        pass


class NoExample(ByteTokenizer):
    class Options(PluginOptions):
        path: str


class TakesAnyOption(ByteTokenizer):
    class Options(PluginOptions):
        model_config = ConfigDict(extra="ignore")


class ChangesOption(ByteTokenizer):
    class Options(PluginOptions):
        merges: int = 5

        @field_serializer("merges")
        def _one_more(self, merges: int) -> int:
            return merges + 1


class LosesNone(ByteTokenizer):
    class Options(PluginOptions):
        limit: int | None = 5

        @classmethod
        def example(cls, folder: Path) -> Self:
            return cls(limit=None)


# What a tokenizer may do wrong


class Raises(ByteTokenizer):
    @classmethod
    def train(cls, options: Any, splits: Splits) -> Self:
        raise ZeroDivisionError("no text is long enough")


class Exits(ByteTokenizer):
    @classmethod
    def train(cls, options: Any, splits: Splits) -> Self:
        raise SystemExit(3)


class PanicError(BaseException):
    """As those of a Rust extension, no Exception."""


class Panics(ByteTokenizer):
    @classmethod
    def train(cls, options: Any, splits: Splits) -> Self:
        raise PanicError("called Option::unwrap()")


class GivesNothing(ByteTokenizer):
    @classmethod
    def train(cls, options: Any, splits: Splits) -> Self:
        return None  # type: ignore[return-value]


class FloatVocabulary(ByteTokenizer):
    vocab_size = 256.0  # type: ignore[assignment]


class ForgetsALetter(CharTokenizer):
    def unknown_characters(self, text: str) -> str:
        return "".join(sorted(set(super().unknown_characters(text)) | ({"e"} & set(text))))


class UnknownIsNone(ByteTokenizer):
    def unknown_characters(self, text: str) -> str:
        return None  # type: ignore[return-value]


class IdsInAList(ByteTokenizer):
    def encode(self, text: str) -> Any:
        return list(text.encode())


class FloatIds(ByteTokenizer):
    def encode(self, text: str) -> Any:
        return super().encode(text).astype(np.float32)


class IdsInARow(ByteTokenizer):
    def encode(self, text: str) -> Any:
        return super().encode(text)[None]


class IdsTooHigh(ByteTokenizer):
    vocab_size = 200  # type: ignore[assignment]


class StartsWithAnId(ByteTokenizer):
    def encode(self, text: str) -> Any:
        return super().encode(text or "a")


class EndsWithASpace(ByteTokenizer):
    def decode(self, ids: Sequence[int]) -> str:
        return super().decode(ids) or " "


class RandomOrder(CharTokenizer):
    @classmethod
    def train(cls, options: PluginOptions, splits: Splits) -> Self:
        characters = sorted(set(splits.train + splits.val))
        random.shuffle(characters)
        return cls(characters)


class ChangesItsMind(ByteTokenizer):
    """Ids that depend on how often it was asked."""

    asked: ClassVar[int] = 0

    def encode(self, text: str) -> Any:
        ChangesItsMind.asked += 1
        return super().encode(text) ^ (ChangesItsMind.asked & 1)

    def decode(self, ids: Sequence[int]) -> str:
        return super().decode([int(token) ^ (ChangesItsMind.asked & 1) for token in ids])


class SetOrder(CharTokenizer):
    @classmethod
    def train(cls, options: PluginOptions, splits: Splits) -> Self:
        return cls(list(set(splits.train + splits.val)))


class LearnsFromVal(CharTokenizer):
    @classmethod
    def train(cls, options: PluginOptions, splits: Splits) -> Self:
        text = splits.train + splits.val
        return cls(sorted(set(text), key=lambda character: (-text.count(character), character)))


class Strips(ByteTokenizer):
    def encode(self, text: str) -> Any:
        return super().encode(text.strip())


class LowersUnsaid(ByteTokenizer):
    def encode(self, text: str) -> Any:
        return super().encode(text.lower())


class GrowsEachTime(ByteTokenizer):
    lossless = False

    def encode(self, text: str) -> Any:
        return super().encode(f"{text} " if text else "")


class ForgetsBetweenPieces(CharTokenizer):
    def encode_stream(self, pieces: Iterable[str]) -> Iterator[Any]:
        return (self.encode(piece.lstrip(" ")) for piece in pieces)


class UnseenBecomesFirst(CharTokenizer):
    """Reports nothing as unknown, and has one id for all that is."""

    def unknown_characters(self, text: str) -> str:
        return ""

    def encode(self, text: str) -> Any:
        return super().encode(text.translate(dict.fromkeys(map(ord, super().unknown_characters(text)), "\0")))


class UnseenRaises(CharTokenizer):
    def unknown_characters(self, text: str) -> str:
        return ""


class NamesOthers(CharTokenizer):
    def unknown_characters(self, text: str) -> str:
        unknown = super().unknown_characters(text)
        return unknown and f"{unknown}\U0001f9e9"


class NamesTwice(CharTokenizer):
    def unknown_characters(self, text: str) -> str:
        return 2 * super().unknown_characters(text)


class NamesBackwards(CharTokenizer):
    def unknown_characters(self, text: str) -> str:
        return super().unknown_characters(text)[::-1]


class DecodesStrictly(ByteTokenizer):
    def decode(self, ids: Sequence[int]) -> str:
        return bytes(list(ids)).decode()


class DecodesHalves(ByteTokenizer):
    def decode(self, ids: Sequence[int]) -> str:
        return bytes(list(ids)).decode("utf-8", "surrogateescape")


class PythonIdsOnly(ByteTokenizer):
    def decode(self, ids: Sequence[int]) -> str:
        return super().decode(json.loads(json.dumps(ids)))


class SavesASet(CharTokenizer):
    def to_json(self) -> dict[str, Any]:
        return {"type": "char", "characters": set(self._alphabet.characters)}


class LosesPairs(BigramTokenizer):
    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return super().from_json({**data, "pairs": data["pairs"][:-2]})


class TakesAnything(ByteTokenizer):
    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return cls()


class RefusesWithKeyError(CharTokenizer):
    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        if data["type"] != "char":
            raise ValueError("another's")
        return super().from_json({"type": "char", "characters": data["characters"]})


class GuessesWhatIsMissing(CharTokenizer):
    """A file that lost its characters is taken for one of letters."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return super().from_json({**data, "characters": data.get("characters", "abc")} if data else data)


class TakesWithoutType(CharTokenizer):
    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return super().from_json({"type": "char", **data})


class TakesAList(CharTokenizer):
    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        if data.keys() != {"type", "characters"} or "char" not in data["type"]:
            raise ValueError("another's")
        return cls("".join(data["characters"]))


class _EachAlone(StreamDecoder):
    def push(self, token: int) -> str:
        return self._tokenizer.decode([token])


class ShowsHalves(ByteTokenizer):
    def stream_decoder(self) -> StreamDecoder:
        return _EachAlone(self)


class _Unfinished(StreamDecoder):
    def finish(self) -> str:
        return ""


class LosesTheEnd(ByteTokenizer):
    def stream_decoder(self) -> StreamDecoder:
        return _Unfinished(self)


class SharesItsStream(ByteTokenizer):
    def stream_decoder(self) -> StreamDecoder:
        if not hasattr(self, "_stream"):
            self._stream = StreamDecoder(self)
        return self._stream


class Slow(ByteTokenizer):
    def encode(self, text: str) -> Any:
        time.sleep(1.5 if len(text) == 20_000 else 0)  # of which speed is measured
        return super().encode(text)


class Endless(ByteTokenizer):
    """For a test that has less patience."""

    @property
    def vocab_size(self) -> int:
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue


WRONG: list[tuple[type, str]] = [
    (Duck, "base class"),
    (LacksDecode, "base class"),
    (NoSummary, "summary"),
    (LongSummary, "summary"),
    (OtherOptions, "options"),
    (NoExample, "options"),
    (TakesAnyOption, "unknown option"),
    (ChangesOption, "options in a file"),
    (LosesNone, "options in a file"),
    (Raises, "learns"),
    (Exits, "learns"),
    (Panics, "learns"),
    (GivesNothing, "learns"),
    (FloatVocabulary, "vocabulary"),
    (ForgetsALetter, "known characters"),
    (UnknownIsNone, "known characters"),
    (IdsInAList, "ids"),
    (FloatIds, "ids"),
    (IdsInARow, "ids"),
    (IdsTooHigh, "ids"),
    (StartsWithAnId, "empty text"),
    (EndsWithASpace, "empty text"),
    (RandomOrder, "same twice"),
    (ChangesItsMind, "same twice"),
    (SetOrder, "same elsewhere"),
    (LearnsFromVal, "val unseen"),
    (Strips, "round trip"),
    (LowersUnsaid, "round trip"),
    (GrowsEachTime, "round trip"),
    (ForgetsBetweenPieces, "pieces"),
    (UnseenBecomesFirst, "unseen characters"),
    (UnseenRaises, "unseen characters"),
    (NamesOthers, "unseen characters"),
    (NamesTwice, "unseen characters"),
    (NamesBackwards, "unseen characters"),
    (DecodesStrictly, "any ids"),
    (DecodesHalves, "any ids"),
    (PythonIdsOnly, "any ids"),
    (SavesASet, "saved and loaded"),
    (LosesPairs, "saved and loaded"),
    (TakesAnything, "refuses"),
    (RefusesWithKeyError, "refuses"),
    (GuessesWhatIsMissing, "refuses"),
    (TakesWithoutType, "refuses"),
    (TakesAList, "refuses"),
    (ShowsHalves, "stream"),
    (LosesTheEnd, "stream"),
    (SharesItsStream, "streams apart"),
    (Slow, "speed"),
]


# Odd, and right


class Lowers(LowersUnsaid):
    lossless = False


class FourLetters(CharTokenizer):
    """Of a fixed alphabet, whatever the text is."""

    @classmethod
    def train(cls, options: PluginOptions, splits: Splits) -> Self:
        return cls("acgt")


class ByAppearance(CharTokenizer):
    """Names what it does not know in the order in which it appears."""

    def unknown_characters(self, text: str) -> str:
        return "".join(sorted(super().unknown_characters(text), key=text.index))


class WithADefault(BigramTokenizer):
    """Reads what an older version wrote, which had no pairs."""

    class Options(BigramTokenizer.Options):
        max_pairs: int = 0

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return super().from_json({"pairs": "", **data})


class KeepsWhatItReads(ByteTokenizer):
    """Has a key that means nothing where it is missing, and writes what it was given."""

    def __init__(self, data: dict[str, Any] | None = None) -> None:
        self.data = data or {"type": "bytes", "padding": None}

    def to_json(self) -> dict[str, Any]:
        return self.data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        if data.get("type") != "bytes" or not data.keys() <= {"type", "padding"}:
            raise ValueError("another's")
        return cls(data)


class MayShout(ByteTokenizer):
    """If the key is missing it is another tokenizer, and reports it."""

    lossless = False

    def __init__(self, case: str | None = "upper") -> None:
        self.case = case

    def encode(self, text: str) -> Any:
        return super().encode(text.upper() if self.case else text)

    def to_json(self) -> dict[str, Any]:
        return {"type": "shout", "case": self.case}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        if data.get("type") != "shout" or data.get("case") not in (None, "upper") or len(data) > 2:
            raise ValueError("another's")
        return cls(data.get("case"))


RIGHT: list[type] = [Lowers, FourLetters, ByAppearance, WithADefault, KeepsWhatItReads, MayShout]
