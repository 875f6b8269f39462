"""Options of a plugin: the keys beside `type` in its table of an experiment file."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

API_VERSION = 1
"""The version of this surface. A plugin class may state the one that it was written for in `api_version`."""


class PluginOptions(BaseModel):
    """Subclass it with one typed field for each option, each with a default where there is a sensible one.

    Unknown keys are refused and the values are validated, with the place in the experiment file in the error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Options that `gptkit plugins check` tries the plugin with: the defaults.

        Override it where an option has none. What the options name may be written into `folder`.
        """
        return cls()
