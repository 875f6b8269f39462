"""The dataset `tokens`: files of token ids that nanoGPT and llm.c train on.

Input: the files, and the tokenizer that made them. Output: the text that their ids stand for. nanoGPT's
files are ids of 2 bytes without a header; llm.c's begin with a header of 1024 bytes. Neither names its
tokenizer: it is nanoGPT's meta.pkl, which is read without running it, or a byte-level tokenizer.json. With
the same tokenizer, the ids that gptkit trains on are those of the file. Knows nothing of runs.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gptkit.data.readers import fingerprint_of
from gptkit.errors import DataError
from gptkit.plugins import registry
from gptkit.plugins.dataset import DataFolders, Dataset
from gptkit.plugins.options import PluginOptions
from gptkit.plugins.tokenizer import Splits

_HEADER = 1024  # bytes of llm.c's header: 256 integers of 4 bytes, of which three are used
_HEADERS = {20240520: (1, "<u2"), 20240801: (7, "<u4")}  # llm.c: magic -> version, type of an id
_AT_ONCE = 1 << 18  # ids that are decoded at a time
_MAX_META = 64_000_000  # bytes of a meta.pkl
_META = "meta.pkl"
_REMEDY = 'Name it, beside the path: tokenizer = "…"'

_Path = Annotated[str, Field(min_length=1, max_length=4096)]
_Ids = NDArray[np.integer[Any]]


class TokensOptions(PluginOptions):
    path: _Path | Annotated[list[_Path], Field(min_length=1, max_length=10_000)] = Field(
        description="A file of nanoGPT or llm.c, such as train.bin, or a list of them."
    )
    tokenizer: _Path | None = Field(
        default=None,
        description="What made the ids: nanoGPT's meta.pkl, by default the one beside the file, or a "
        "tokenizer.json such as that of GPT-2.",
    )

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Writes a small file with its meta.pkl into `folder`."""
        letters = "abcdefghijklmnopqrstuvwxyz \n"
        entries = b"".join(
            b"K%cX\x01\0\0\0%c" % (number, ord(letter)) for number, letter in enumerate(letters)
        )
        (folder / _META).write_bytes(b"\x80\x02}X\x04\0\0\0itos}(" + entries + b"us.")
        line = [letters.index(letter) for letter in "a few small words\n"]
        (folder / "example.bin").write_bytes(np.array(line * 80, dtype="<u2").tobytes())
        return cls(path=str(folder / "example.bin"))


class TokensDataset(Dataset):
    """The text of token files, in the order of the list.

    Bytes that are no whole character become U+FFFD, as where a document was cut.
    """

    summary = "token files of nanoGPT and llm.c: train.bin"
    source = "your own files"
    Options = TokensOptions

    def read(self, folders: DataFolders) -> str:
        return "".join(self.pieces(folders))

    def pieces(self, folders: DataFolders) -> Iterator[str]:
        files = self._files(folders)
        size, decode, can_begin = self._vocabulary(files, folders)
        for path in files:
            ids = _open(path)
            start = 0
            while start < len(ids):
                some = ids[start : start + _AT_ONCE]
                if int(some.max()) >= size:
                    wrong = start + int(np.argmax(some >= size))
                    raise DataError(
                        f"{path} is not of this tokenizer: its token {wrong} (from 0) is {ids[wrong]}, and "
                        f"the tokenizer has {size}.\n{_REMEDY}"
                    )
                if start + len(some) < len(ids):
                    some = some[: _last_beginning(some, can_begin)]
                yield decode(some)
                start += len(some)
                folders.progress(start, len(ids))

    def fingerprint(self, folders: DataFolders) -> str | None:
        files = self._files(folders)
        found = fingerprint_of([*files, self._tokenizer(files, folders)])
        return found and json.dumps([self.options.model_dump(mode="json"), found])

    def is_here(self, folders: DataFolders) -> bool:
        return all(_find(path, folders) is not None for path in self._paths())

    def fetch(self, folders: DataFolders, *, repair: bool = False) -> None:
        self._files(folders)

    def _paths(self) -> Sequence[str]:
        path = self.options.path
        return [path] if isinstance(path, str) else path

    def _files(self, folders: DataFolders) -> list[Path]:
        return [_found(path, folders, "file of tokens") for path in self._paths()]

    def _tokenizer(self, files: Sequence[Path], folders: DataFolders) -> Path:
        """The file of the tokenizer. Raises DataError."""
        if self.options.tokenizer is not None:
            return _found(self.options.tokenizer, folders, "tokenizer")
        beside = files[0].parent / _META
        if not os.path.isfile(beside):
            raise DataError(
                f"{files[0]} does not say which tokenizer made it, and there is no {_META} beside it.\n"
                f"{_REMEDY}"
            )
        return beside

    def _vocabulary(
        self, files: Sequence[Path], folders: DataFolders
    ) -> tuple[int, Callable[[_Ids], str], Callable[[int], bool]]:
        """The number of tokens, the text of ids, and whether a text can be cut before an id."""
        path = self._tokenizer(files, folders)
        if path.name.lower().endswith(".json") or os.path.isdir(path):
            return _of_json(path)
        points = _characters(path)

        def decode(ids: _Ids) -> str:
            return points[ids].tobytes().decode("utf-32-le", "surrogatepass")

        return len(points), decode, lambda token: True


def _of_json(path: Path) -> tuple[int, Callable[[_Ids], str], Callable[[int], bool]]:
    cls = registry.load(registry.TOKENIZERS, "hf")
    tokenizer = cls.train(cls.Options(path=str(path)), Splits("", ""))
    decoder = tokenizer.to_json().get("decoder")
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        raise DataError(
            f"{path} is not a byte-level tokenizer, so its ids do not say what the text between them was.\n"
            "Use the text itself as the dataset."
        )

    def decode(ids: _Ids) -> str:
        return str(tokenizer.decode(ids.tolist()))

    return tokenizer.vocab_size, decode, lambda token: "\ufffd" not in tokenizer.decode([token])


def _last_beginning(ids: _Ids, can_begin: Callable[[int], bool]) -> int:
    """The last place where the ids can be cut without cutting a character; all of them if there is none."""
    at = len(ids) - 1
    while at > 0 and not can_begin(int(ids[at])):
        at -= 1
    return at or len(ids)


def _characters(path: Path) -> NDArray[np.uint32]:
    """The code point of each id in nanoGPT's meta.pkl. Raises DataError."""
    from gptkit.pickles import PickleError, read_pickle  # imports torch

    try:
        with path.open("rb") as file:
            data = file.read(_MAX_META + 1)
        meta = read_pickle(data)
        found = meta.get("itos") if isinstance(meta, dict) else None
        if not isinstance(found, dict) or set(found) != set(range(len(found))) or not found:
            raise PickleError("it has no itos, the characters by their ids")
        if not all(isinstance(one, str) and len(one) == 1 for one in found.values()):
            raise PickleError("an entry of itos is not a character")
    except (OSError, PickleError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path} is not a meta.pkl of nanoGPT: {reason}.\n{_REMEDY}") from None
    return np.array([ord(found[number]) for number in range(len(found))], dtype="<u4")


def _open(path: Path) -> _Ids:
    """The ids of a file, mapped. Raises DataError for one that is empty, cut or of another kind."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            magic, version, tokens = struct.unpack("<3i", file.read(12).ljust(12, b"\xff"))
        known = _HEADERS.get(magic)
        start, kind = 0, "<u2"
        if known is not None and size >= 12:
            start, kind = _HEADER, known[1]
            if version != known[0]:
                raise DataError(f"{path}: version {version} of llm.c's format; gptkit reads {known[0]}.")
            if tokens < 0 or size != _HEADER + tokens * np.dtype(kind).itemsize:
                raise DataError(
                    f"{path} is cut or damaged: its header announces {tokens} tokens, and it has {size} "
                    "bytes.\nCopy or make it again."
                )
        elif size % 2:
            raise DataError(
                f"{path} is no file of tokens, or is cut: {size} bytes are not ids of 2 bytes each, and it "
                "has no header of llm.c.\nCopy or make it again."
            )
        if size <= start:
            raise DataError(f"{path} has no tokens; a dataset needs text.")
        return np.asarray(np.memmap(path, dtype=kind, mode="r", offset=start))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from None


def _find(path: str, folders: DataFolders) -> Path | None:
    """A file as given, or in the data folders."""
    given = Path(os.path.expanduser(path))
    inside = not given.is_absolute() and ".." not in given.parts
    for candidate in [given, *(folder / given for folder in folders.search if inside)]:
        if os.path.exists(candidate):
            return candidate
    return None


def _found(path: str, folders: DataFolders, what: str) -> Path:
    found = _find(path, folders)
    if found is None:
        raise DataError(
            f"there is no {what} {path!r}. Looked for it as given, and in "
            f"{', '.join(map(str, folders.search)) or 'no data folder'}."
        )
    return found
