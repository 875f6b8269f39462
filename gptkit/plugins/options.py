"""What the families of plugins share: the version of the plugin API, options, and reports of progress."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

API_VERSION = 1
"""The version of the plugin API. A plugin class states in `api_version` the one that it was written for."""

ProgressCallback = Callable[[int, int], None]
"""Called with the amount done and the total (0 where it is unknown), both in the same unit."""


def no_progress(done: int, total: int) -> None:
    """The default `ProgressCallback`: does nothing."""


class PluginOptions(BaseModel):
    """The options of a plugin: the keys other than `type` in its table of an experiment file.

    Subclass it as `Options` inside the plugin class, with a typed field for each option and a default where
    there is a sensible one. Values are validated by pydantic and unknown keys are refused; the message names
    the place in the experiment file. Numbers are finite: nan and inf are refused.

        class MyTokenizer(Tokenizer):
            class Options(PluginOptions):
                max_words: int = Field(default=500, ge=0, description="Number of words to keep.")
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def example(cls, folder: Path) -> Self:
        """The options that `gptkit plugins check` and the tests of `gptkit.testing` use: the defaults.

        Override it where an option has no default. A file that an option names may be written into `folder`.
        """
        return cls()
