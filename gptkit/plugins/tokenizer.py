"""The base class of tokenizers, which map text to token ids and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

from gptkit.plugins.options import API_VERSION, PluginOptions, ProgressCallback, no_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Ids: TypeAlias = "NDArray[np.integer[Any]]"
"""Token ids, shape (T,), of any integer type."""


@dataclass(frozen=True)
class Splits:
    """The text of a run, which a tokenizer is trained on.

    Attributes:
        train: the text that the model is trained on. Take all statistics from this one.
        val: the text that it is evaluated on. Take at most its set of characters, so that it stays unseen.
        progress: call it with the work done and in all, where training the tokenizer takes long.
    """

    train: str
    val: str
    progress: ProgressCallback = field(default=no_progress, compare=False)

    @property
    def train_characters(self) -> int:
        """The length of `train`."""
        return len(self.train)

    def train_pieces(self) -> Iterator[str]:
        """The text `train` in pieces of any length. A text larger than memory is read in this way only."""
        yield self.train

    def val_pieces(self) -> Iterator[str]:
        """The text `val` in pieces of any length."""
        yield self.val


class StreamDecoder:
    """Decodes ids to text one at a time, holding back what is not yet a whole character.

    This one works with any tokenizer whose `decode` returns U+FFFD, the replacement character, for an
    incomplete character at the end of the ids. While the decoded text ends with U+FFFD, `push` returns "" and
    keeps the ids; they are decoded again with the next one, which is cheap as long as characters complete.
    A tokenizer that needs more than that, such as spaces between words, overrides `Tokenizer.stream_decoder`.
    """

    LONGEST = 16  # ids that one character may take; then they are decoded as they are

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """The text that became complete with this id; may be empty."""
        self._pending.append(token)
        text = self._tokenizer.decode(self._pending)
        if text.endswith("\ufffd") and len(self._pending) < self.LONGEST:
            return ""
        self._pending.clear()
        return text

    def finish(self) -> str:
        """The text of the ids that are held back, when no more ids come."""
        text = self._tokenizer.decode(self._pending) if self._pending else ""
        self._pending.clear()
        return text


class Tokenizer(ABC):
    """Maps text to token ids and back. Trained on the text of a run, saved with the run as tokenizer.json.

    Rules in addition to those of the methods: the same options and text give the same tokenizer in every
    process; a loaded one does the same as the one that was saved; bytes that are not a whole character decode
    to U+FFFD (`bytes(...).decode("utf-8", errors="replace")`), never to an error, as a model may generate any
    ids and generation decodes them one by one (see `StreamDecoder`).

        class CodePoints(Tokenizer):
            summary = "code points of ASCII"
            vocab_size = 128

            @classmethod
            def train(cls, options: PluginOptions, splits: Splits) -> Self:
                return cls()

            def encode(self, text: str) -> NDArray[np.integer[Any]]:
                return np.frombuffer(text.encode("ascii"), dtype=np.uint8)

            def decode(self, ids: Sequence[int]) -> str:
                return "".join(map(chr, ids))

            def unknown_characters(self, text: str) -> str:
                return "".join(sorted({c for c in text if not c.isascii()}))

            ...  # to_json, from_json

    Attributes:
        summary: one line for listings.
        keeps: whether what `train` learns depends on its options and the text alone, not on a file, so that
            gptkit may keep it in the user's cache for a large text.
        lossless: whether `decode(encode(text)) == text` for every text without unknown characters; False for
            one that converts to lower case, for example. May be set on the object.
        Options: the options of its table in an experiment file.
        api_version: the version of the plugin API that it was written for.
        needs: modules that it imports only when it is used. Where one is missing, gptkit refuses the plugin
            and names the extra of its package that brings it.
    """

    summary: ClassVar[str] = ""
    lossless: bool = True
    keeps: ClassVar[bool] = False
    Options: ClassVar[type[PluginOptions]] = PluginOptions
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **keywords: Any) -> None:
        """A class that overrides `encode` or `train` alone does not inherit what its base says of them."""
        super().__init_subclass__(**keywords)
        if "encode" in cls.__dict__ and "encode_stream" not in cls.__dict__:
            cls.encode_stream = Tokenizer.encode_stream  # type: ignore[method-assign]
        if "train" in cls.__dict__ and "keeps" not in cls.__dict__:
            cls.keeps = False

    @classmethod
    @abstractmethod
    def train(cls, options: Any, splits: Splits) -> Self:
        """Builds a tokenizer for a run. The same options and text always give the same tokenizer."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of ids; every id is in [0, vocab_size)."""

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """The ids of `text`, shape (T,), of any integer type; none for the empty text.

        gptkit asks `unknown_characters` first, so `text` has only characters that have ids.
        """

    def encode_stream(self, pieces: Iterable[str]) -> Iterator[Ids]:
        """The ids of the text that `pieces` make together, in arrays of any length: those of `encode`.

        Override it where `encode` can do without the whole text. The default joins the pieces.
        """
        yield self.encode("".join(pieces))

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, each in [0, vocab_size), as Python's or numpy's integers.

        Never raises for such ids, and returns no lone surrogates: bytes that are not a whole character, also
        at the end, give U+FFFD.
        """

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Everything that `from_json` needs, as JSON values. Saved as the run's tokenizer.json.

        Include a "type" of its own, by which `from_json` refuses the JSON of another tokenizer.
        """

    @classmethod
    @abstractmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The tokenizer that `to_json` described. Raises ValueError if `data` describes no such tokenizer.

        Check `data`: a run folder may come from somebody else, or be damaged.
        """

    def unknown_characters(self, text: str) -> str:
        """The distinct characters of `text` that have no ids, sorted or in order of appearance; or ""."""
        return ""

    def stream_decoder(self) -> StreamDecoder:
        """A new decoder for text that is generated id by id; several are used at the same time."""
        return StreamDecoder(self)
