"""Trackers: a run's numbers and samples, shown elsewhere while it trains.

Input: the trackers that an experiment asks for, and the events of a run. Output: calls of the trackers, none
of which can harm the run. `tensorboard` is built in. Knows nothing of training or of the run's own files.
"""

from gptkit.tracking.dispatch import ChosenTracker, Tracking, choose_tracker

__all__ = ["ChosenTracker", "Tracking", "choose_tracker"]
