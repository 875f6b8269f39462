"""The contract of a tokenizer: text to ids and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
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
    """The text of a run, for a tokenizer to learn from.

    Whatever is learnt by counting should come from `train` alone, so that `val` stays unseen. `progress` is
    to be called while learning takes long.
    """

    train: str
    val: str
    progress: ProgressCallback = field(default=no_progress, compare=False)


class StreamDecoder:
    """Turns ids into text one at a time, holding back what is not yet a whole character.

    This one works with any tokenizer whose `decode` gives U+FFFD for an incomplete character. It decodes the
    ids since the last complete point again at each call, which is cheap as long as characters complete.
    """

    LONGEST = 16  # ids that one character may take before what there is is given out as it is

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
        """What is left when no more ids come."""
        text = self._tokenizer.decode(self._pending) if self._pending else ""
        self._pending.clear()
        return text


class Tokenizer(ABC):
    """Text to ids and back. Built from the text of a run, saved with the run as one JSON file.

    Attributes:
        summary: one line for listings.
        lossless: whether decoding what was encoded gives the text back, for every text without unknown
            characters; False for one that lowers case, say. May be set on the object.
        Options: the options of its table in an experiment file.
        api_version: the version of this surface that it was written for.
        needs: modules that it imports only when it is used. Where one is missing, gptkit refuses the plugin
            and says which extra of its package brings it.
    """

    summary: ClassVar[str] = ""
    lossless: bool = True
    Options: ClassVar[type[PluginOptions]] = PluginOptions
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[tuple[str, ...]] = ()

    @classmethod
    @abstractmethod
    def train(cls, options: Any, splits: Splits) -> Self:
        """Builds one for a run. The same options and text give the same tokenizer, always."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """How many ids there are; every id is in [0, vocab_size)."""

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """Ids of `text`, shape (T,), of any integer type.

        Characters for which `unknown_characters` is not empty need not be handled; it is asked first.
        """

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`. Never raises for ids in range: bytes that are no character give U+FFFD."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """All that `from_json` needs, as JSON values. This is the run's tokenizer.json."""

    @classmethod
    @abstractmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The tokenizer that `to_json` described. Raises ValueError where `data` does not describe one."""

    def unknown_characters(self, text: str) -> str:
        """The distinct characters of `text` that it has no id for, in order; empty when there are none."""
        return ""

    def stream_decoder(self) -> StreamDecoder:
        """A decoder for text that appears id by id."""
        return StreamDecoder(self)
