"""The base class of trackers, which show a run's numbers and samples elsewhere while it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gptkit.plugins.options import API_VERSION, PluginOptions


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker follows.

    Attributes:
        id: the run's id.
        folder: the run's folder. Write nothing there but in `place`.
        place: the tracker's own folder inside it, called by the tracker's name; it may not exist yet. All its
            files go there, so that they move and vanish with the run.
        experiment: the resolved experiment file, every field explicit, as TOML values.
        start_step: 0, or the step from which the run is resumed. Numbers of later steps from an earlier
            session are void: these steps are trained again.
    """

    id: str
    folder: Path
    place: Path
    experiment: Mapping[str, Any]
    start_step: int = 0


class Tracker(ABC):
    """Follows a run as it trains: `start`, then `scalars` and `text` in the order of steps, then `finish`.

    A tracker gets numbers and texts, never tensors, so it cannot change the training. Nor can it harm the
    run: the first error that it raises becomes a warning, and it is not called again in that session, not
    even `finish`. Training waits for each call, so one that uses a network should hand over to a thread of
    its own and wait in `finish` alone. Calls are rare: every `training.log_interval` steps, at each
    evaluation and sample, and at the end. What a tracker prints goes to standard error.

    A resumed run has a new object, whose `start` gets the step. A run that was killed had no `finish`. The
    options come from an experiment file, perhaps somebody else's: put no secrets there, and execute nothing
    from it.

        class Lines(Tracker):
            summary = "one line per call"

            def start(self, run: TrackedRun) -> None:
                run.place.mkdir(exist_ok=True)
                self.file = (run.place / "lines.txt").open("a", encoding="utf-8")

            def scalars(self, step: int, values: Mapping[str, float], seconds: float) -> None:
                print(step, dict(values), file=self.file, flush=True)

            def finish(self, status: str) -> None:
                self.file.close()

    Attributes:
        summary: one line for listings.
        Options: the options of its table in an experiment file, `[tracking.NAME]`.
        api_version: the version of the plugin API that it was written for.
        needs: modules that it imports only when it is used. Where one is missing, gptkit refuses the plugin
            and names the extra of its package that brings it.
    """

    summary: ClassVar[str] = ""
    Options: ClassVar[type[PluginOptions]] = PluginOptions
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: Any) -> None:
        self.options = options

    def start(self, run: TrackedRun) -> None:  # noqa: B027  (optional)
        """Called once, before everything else."""

    @abstractmethod
    def scalars(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        """Numbers at a step, after `seconds` of training in all sessions of the run.

        The names are `loss/train` and `loss/val` (mean nats per token), `bits_per_byte/val` (where the
        tokenizer returns the text), `learning_rate`, `grad_norm` (before clipping) and `tokens_per_second`;
        later versions may add more. Each call has some of them, and a step may have several calls. Values may
        be inf or nan.
        """

    def text(self, step: int, name: str, text: str) -> None:  # noqa: B027  (optional)
        """A text at a step. `name` is `sample` for what the model generated; later versions may add more."""

    def finish(self, status: str) -> None:  # noqa: B027  (optional)
        """Called when the session ends: close every file and connection.

        `status` is "finished", "stopped", "interrupted", "terminated", "diverged" or "failed". After each of
        them the run may be resumed in another session.
        """
