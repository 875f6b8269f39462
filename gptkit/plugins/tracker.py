"""The contract of a tracker: a run's numbers and samples, shown elsewhere while it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gptkit.plugins.options import API_VERSION, PluginOptions


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker is told of.

    `place` is the tracker's own folder inside the run's, called by its name; it may not be there yet. Files
    that a tracker writes go there and nowhere else, so that they move and vanish with the run.
    `start_step` is 0, or the step that the run goes on from: what was told of later steps before is void, as
    these steps come again.
    """

    id: str
    folder: Path
    place: Path
    experiment: Mapping[str, Any]  # resolved: an experiment file with every field, as TOML values
    start_step: int = 0


class Tracker(ABC):
    """Told of a run as it trains: `start`, then `scalars` and `text` in the order of steps, then `finish`.

    It gets numbers and texts, never tensors, so it cannot change what it watches. Nor can it harm the run:
    the first thing that it raises is shown as a warning, and it is not called again in that session, not
    even `finish`. Training waits for each call, so one that talks to a network should hand over to a thread
    of its own and wait in `finish` alone. Calls come seldom: every `training.log_interval` steps, at each
    evaluation and sample, and at the end. What is printed goes to standard error.

    A run that is resumed has a new object, whose `start` says where it goes on. A run that was killed had no
    `finish`. The options come from an experiment file, which may be that of a stranger's run: nothing
    secret belongs there, and nothing in it should be run.

    Attributes:
        summary: one line for listings.
        Options: the options of its table in an experiment file, `[tracking.NAME]`.
        api_version: the version of this surface that it was written for.
        needs: modules that it imports only when it is used. Where one is missing, gptkit refuses the plugin
            and says which extra of its package brings it.
    """

    summary: ClassVar[str] = ""
    Options: ClassVar[type[PluginOptions]] = PluginOptions
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: Any) -> None:
        self.options = options

    def start(self, run: TrackedRun) -> None:  # noqa: B027  (optional)
        """Called once, before all else."""

    @abstractmethod
    def scalars(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        """Numbers as of a step, after `seconds` of training in all sessions of the run.

        The names are `loss/train` and `loss/val` (mean nats a token), `bits_per_byte/val`, `learning_rate`,
        `grad_norm` (before clipping) and `tokens_per_second`; there may be more in time, and a call has some
        of them. A step may have several calls. Values may be inf or nan.
        """

    def text(self, step: int, name: str, text: str) -> None:  # noqa: B027  (optional)
        """A text as of a step. `name` is `sample`, for what the model wrote; there may be more in time."""

    def finish(self, status: str) -> None:  # noqa: B027  (optional)
        """The session is over: let go of every file and connection.

        `status` is one of "finished", "stopped", "interrupted", "terminated", "diverged" and "failed". After
        each of them the run may go on in another session.
        """
