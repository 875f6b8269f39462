"""The text of a dataset, which may be larger than memory: held as a string, or read in pieces each time.

Input: a string, or a function that yields the text in pieces. Output: its characters,
bytes and SHA-256; parts of it in pieces; passages of it. Knows nothing of files, tokens or runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gptkit.errors import DataError

LARGE = 8_000_000
"""Characters from which on a text is read as a stream and its ids are kept in the user's cache.

Below, tokenizing takes less than opening a cache is worth."""

_AT_ONCE = 1 << 20  # characters that are encoded at a time, so that no second copy of a text is in memory
_CODE_POINTS = 0x110000


@dataclass(frozen=True)
class Measures:
    """What is known of a text once it was read."""

    characters: int
    bytes: int  # as UTF-8
    sha256: str  # of the UTF-8
    distinct: str  # the distinct characters, sorted


class Text:
    """A text in memory."""

    def __init__(self, text: str, title: str = "the text") -> None:
        self._text = text
        self.title = title  # of the dataset, for people

    @property
    def characters(self) -> int:
        return len(self._text)

    @property
    def is_large(self) -> bool:
        return self.characters >= LARGE

    @cached_property
    def _size_and_hash(self) -> tuple[int, str]:
        return measure_text(self._text)

    @property
    def bytes(self) -> int:
        """As UTF-8. Raises DataError for a lone surrogate."""
        return self._size_and_hash[0]

    @property
    def sha256(self) -> str:
        """Of the UTF-8, in hexadecimal. Raises DataError for a lone surrogate."""
        return self._size_and_hash[1]

    def distinct(self) -> str:
        """Every character of the text, some perhaps several times: what a tokenizer has to know."""
        return self._text

    def pieces(self, start: int, stop: int) -> Iterator[str]:
        """The characters `start` to `stop`, in pieces of any length."""
        if start < stop:
            yield self._text[start:stop]

    def read(self, start: int = 0, stop: int | None = None) -> str:
        """The characters `start` to `stop` as one string."""
        return "".join(self.pieces(start, self.characters if stop is None else stop))

    def split(self, val_fraction: float) -> tuple[Part, Part]:
        """The train split, which is the beginning of the text, and the val split, which is its end."""
        cut = _cut_at(self.characters, val_fraction)
        return Part(self, 0, cut), Part(self, cut, self.characters)


class StreamedText(Text):
    """A text that is read in pieces whenever it is needed, and never held whole."""

    def __init__(self, stream: Callable[[], Iterator[str]], measures: Measures, title: str) -> None:
        super().__init__("", title)
        self._stream, self._measures = stream, measures

    @property
    def characters(self) -> int:
        return self._measures.characters

    @property
    def bytes(self) -> int:
        return self._measures.bytes

    @property
    def sha256(self) -> str:
        return self._measures.sha256

    def distinct(self) -> str:
        return self._measures.distinct

    def pieces(self, start: int, stop: int) -> Iterator[str]:
        """Raises DataError where the text ends before `stop`, as it has changed since it was measured."""
        at = 0
        for piece in self._stream() if start < stop else ():
            if at + len(piece) > start:
                yield piece[max(0, start - at) : stop - at]
            at += len(piece)
            if at >= stop:
                return
        if at < stop:
            raise DataError(
                f"{self.title} became shorter while it was read. Start again once it is complete."
            )


@dataclass(frozen=True)
class Part:
    """The characters `start` to `stop` of a text."""

    text: Text
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def pieces(self) -> Iterator[str]:
        return self.text.pieces(self.start, self.stop)

    def read(self) -> str:
        return self.text.read(self.start, self.stop)

    def passages(self, spans: Sequence[tuple[int, int]]) -> Iterator[str]:
        """The characters of each span (start, stop) of the part; spans are in order and do not overlap."""
        waiting = list(reversed(spans))
        at, found = 0, ""
        for piece in self.pieces():
            end = at + len(piece)
            while waiting and waiting[-1][0] < end:
                start, stop = waiting[-1]
                found += piece[max(0, start - at) : stop - at]
                if stop > end:
                    break
                waiting.pop()
                yield found
                found = ""
            at = end
            if not waiting:
                return
        if found:  # a span that goes past the end
            yield found


class Measuring:
    """Measures a text of which the pieces come one by one. Memory does not grow with the text."""

    def __init__(self) -> None:
        self._characters, self._bytes, self._digest = 0, 0, hashlib.sha256()
        self._ascii = b""  # the distinct characters that were seen, as bytes
        self._others = np.zeros(_CODE_POINTS, dtype=bool)  # by code point

    def add(self, piece: str) -> None:
        """Raises DataError for a lone surrogate."""
        data = _utf8(piece, self._characters)
        self._digest.update(data)
        self._characters += len(piece)
        self._bytes += len(data)
        if len(data) == len(piece):  # ASCII
            if new := data.translate(None, self._ascii):
                self._ascii = bytes({*self._ascii, *new})
        else:
            self._others[np.frombuffer(piece.encode("utf-32-le"), np.uint32)] = True

    def measures(self) -> Measures:
        points = {*self._ascii, *np.flatnonzero(self._others).tolist()}
        distinct = "".join(map(chr, sorted(points)))
        return Measures(self._characters, self._bytes, self._digest.hexdigest(), distinct)


def measured(pieces: Iterable[str]) -> Measures:
    """The measures of the text that the pieces make. Raises DataError for a lone surrogate."""
    measuring = Measuring()
    for piece in pieces:
        measuring.add(piece)
    return measuring.measures()


def split_text(text: str, val_fraction: float) -> tuple[str, str]:
    """The train split, which is the beginning of the text, and the val split, which is its end."""
    cut = _cut_at(len(text), val_fraction)
    return text[:cut], text[cut:]


def _cut_at(characters: int, val_fraction: float) -> int:
    return int(characters * (1 - val_fraction))


def measure_text(text: str) -> tuple[int, str]:
    """Bytes and SHA-256 of the text as UTF-8, without a second copy of it in memory.

    Raises DataError for a lone surrogate, which no file has but a plugin may return.
    """
    digest, size = hashlib.sha256(), 0
    for start in range(0, len(text), _AT_ONCE):
        part = _utf8(text[start : start + _AT_ONCE], start)
        digest.update(part)
        size += len(part)
    return size, digest.hexdigest()


def _utf8(piece: str, start: int) -> bytes:
    try:
        return piece.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the text has a lone surrogate at character {start + error.start}.") from None
