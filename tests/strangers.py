"""Plugins of somebody else's, as code that a test installs."""

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
