"""Trackers: a run's numbers and samples, shown elsewhere while it trains.

In: the trackers that an experiment names, and what a run reports (`calling`). Out: calls of trackers, of
which none can harm the run. `tensorboard` is the one that comes along. Knows nothing of training or of the
run's own files.
"""

from gptkit.tracking.calling import ChosenTracker, Tracking, choose_tracker

__all__ = ["ChosenTracker", "Tracking", "choose_tracker"]
