"""Datasets with one defect each, a few odd ones that are right, and which check has to find it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptkit.plugins import DataFolders, Dataset

TEXT = "Whoever counts the waves needs a long shore.\n" * 30


class Right(Dataset):
    summary = "waves"
    source = "a test"

    def read(self, folders: DataFolders) -> str:
        return TEXT

    def size(self, folders: DataFolders) -> int | None:
        return len(TEXT)


class CannotBeMade(Right):
    def __init__(self) -> None:
        pass


class HereIsNone(Right):
    def is_here(self, folders: DataFolders) -> bool:
        return None  # type: ignore[return-value]


class HereRaises(Right):
    def is_here(self, folders: DataFolders) -> bool:
        raise KeyError("cache")


class FactsInAList(Right):
    def facts(self) -> Any:
        return [("entropy", 1.0)]


class FactsOfLists(Right):
    def facts(self) -> Any:
        return {"languages": ["de", "fr"]}


class FactsNotFinite(Right):
    def facts(self) -> dict[str, str | float]:
        return {"entropy": float("nan")}


class ReadsBytes(Right):
    def read(self, folders: DataFolders) -> str:
        return TEXT.encode()  # type: ignore[return-value]


class ReadsNothing(Right):
    def read(self, folders: DataFolders) -> str:
        return ""

    def size(self, folders: DataFolders) -> int | None:
        return 0


class Exits(Right):
    def read(self, folders: DataFolders) -> str:
        raise SystemExit("no licence")


class HalfACharacter(Right):
    def read(self, folders: DataFolders) -> str:
        return f"{TEXT}\ud83d"


class LeavesAFile(Right):
    def read(self, folders: DataFolders) -> str:
        Path("waves.tmp").write_text(TEXT)
        return TEXT


class ChangesFolder(Right):
    def read(self, folders: DataFolders) -> str:
        import os

        os.chdir("/")
        return TEXT


class RandomText(Right):
    def read(self, folders: DataFolders) -> str:
        return TEXT[:-3] + str(random.randrange(100, 1000))


class PiecesOnce(Right):
    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._left = iter((TEXT[:99], TEXT[99:]))

    def pieces(self, folders: DataFolders) -> Iterator[str]:
        return self._left


class SetOrder(Right):
    def read(self, folders: DataFolders) -> str:
        return "".join(sorted(TEXT)) + "".join(set(TEXT))

    def size(self, folders: DataFolders) -> int | None:
        return None


class WrongSize(Right):
    def size(self, folders: DataFolders) -> int | None:
        return 2 * len(TEXT)


class SizeInWords(Right):
    def size(self, folders: DataFolders) -> Any:
        return "1.4 kB"


WRONG: list[tuple[type, str]] = [
    (CannotBeMade, "made"),
    (HereIsNone, "is here"),
    (HereRaises, "is here"),
    (FactsInAList, "facts"),
    (FactsOfLists, "facts"),
    (FactsNotFinite, "facts"),
    (ReadsBytes, "text"),
    (ReadsNothing, "text"),
    (Exits, "text"),
    (HalfACharacter, "whole characters"),
    (LeavesAFile, "files"),
    (ChangesFolder, "files"),
    (RandomText, "same twice"),
    (PiecesOnce, "pieces"),
    (SetOrder, "same elsewhere"),
    (WrongSize, "size"),
    (SizeInWords, "size"),
]


# Odd, and right


class WritesToDownloads(Right):
    def read(self, folders: DataFolders) -> str:
        folders.downloads.mkdir(parents=True, exist_ok=True)
        (folders.downloads / "waves.txt").write_text(TEXT)
        return TEXT


class SizeWithMark(Right):
    """Its file begins with a byte-order mark."""

    def size(self, folders: DataFolders) -> int | None:
        return len(TEXT) + 3


class Far(Right):
    """Not here, and to ask for it would be to download it."""

    def is_here(self, folders: DataFolders) -> bool:
        return False

    def read(self, folders: DataFolders) -> str:
        raise AssertionError("read() downloads")

    def fetch(self, folders: DataFolders, *, repair: bool = False) -> None:
        raise AssertionError("fetch() downloads")


RIGHT: list[type] = [Right, WritesToDownloads, SizeWithMark, Far]
