"""Whether a plugin keeps its contract: the checks behind `gptkit plugins check`.

In: a plugin's class, anyone's, also a broken one. Out: a line for each check, from the basic to the special,
as they are made. What a plugin raises is a line, never an error of the checking; a check that needs what an
earlier one found wrong is skipped, so that one defect is one bad line where that can be. Nothing is
downloaded. Knows nothing of names, experiments that a person has, or terminals.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gptkit.plugins import DataFolders, PluginOptions
from gptkit.plugins.registry import POSITIONS, TOKENIZERS, TRACKERS
from gptkit.testing.runner import Line, run_checks
from gptkit.testing.subject import COMMON

__all__ = ["Line", "check_plugin"]


def check_plugin(
    family: str,
    cls: type,
    options: PluginOptions | None = None,
    *,
    folder: Path,
    folders: DataFolders,
) -> Iterator[Line]:
    """The lines of all checks of a plugin class, one by one.

    `family` is an entry-point group. Without `options` it is tried with `cls.Options.example(folder)`;
    `folder` is one that may be written to. `folders` is where a dataset looks for its text.
    """
    # What a family needs is imported with it: a tokenizer is checked without torch
    if family == TOKENIZERS:
        from gptkit.testing import tokenizers

        subject = tokenizers.TokenizerSubject(family, cls, options, folder, folders)
        yield from run_checks([*COMMON, *tokenizers.CHECKS], subject)
    elif family == POSITIONS:
        from gptkit.testing import positions

        position = positions.PositionSubject(family, cls, options, folder, folders)
        yield from run_checks([*COMMON, *positions.CHECKS], position)
    elif family == TRACKERS:
        from gptkit.testing import trackers

        tracker = trackers.TrackerSubject(family, cls, options, folder, folders)
        yield from run_checks([*COMMON, *trackers.CHECKS], tracker)
    else:
        from gptkit.testing import datasets

        dataset = datasets.DatasetSubject(family, cls, options, folder, folders)
        yield from run_checks([*COMMON, *datasets.CHECKS], dataset)
