"""Plugins of another package, as code that the fixture `install` installs."""

from __future__ import annotations

TOKENIZER = """
import numpy as np
from gptkit.plugins import PluginOptions, Tokenizer

class Options(PluginOptions):
    shout: bool = False

class UpperTokenizer(Tokenizer):
    "Code points of the text in capitals."
    summary = "capitals"
    Options = Options
    vocab_size = 128

    @classmethod
    def train(cls, options, splits):
        return cls()

    def encode(self, text):
        return np.frombuffer(text.upper().encode("ascii"), dtype=np.uint8)

    def decode(self, ids):
        return bytes(ids).decode("ascii", "replace")

    def to_json(self):
        return {"type": "upper"}

    @classmethod
    def from_json(cls, data):
        return cls()
"""

TRACKER = """
import json
from gptkit.plugins import PluginOptions, Tracker

class Options(PluginOptions):
    raises: str = ""  # the method to fail in
    exits: bool = False

class DiaryTracker(Tracker):
    "Writes down every call, and may fail in one."
    summary = "calls"
    Options = Options

    def __init__(self, options):
        super().__init__(options)
        self.may_fail("__init__")

    def start(self, run):
        run.place.mkdir(exist_ok=True)
        self.calls = run.place / "calls.jsonl"
        self.tell("start", run.id, run.folder.name, run.start_step, run.experiment["tracking"])
        run.experiment.clear()

    def scalars(self, step, values, seconds):
        self.tell("scalars", step, dict(values), seconds)
        values.clear()

    def text(self, step, name, text):
        self.tell("text", step, name, text)

    def finish(self, status):
        self.tell("finish", status)

    def tell(self, *call):
        print("told of", call[0])
        with self.calls.open("a") as file:
            file.write(json.dumps(call) + "\\n")
        self.may_fail(call[0])

    def may_fail(self, method):
        if self.options.raises == method:
            raise SystemExit("good bye") if self.options.exits else ValueError("no\\x1b[2J room\\nat all")
"""
