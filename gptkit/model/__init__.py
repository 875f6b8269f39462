"""The GPT, its positional encodings and its key-value cache."""

from gptkit.model.cache import KeyValueCache
from gptkit.model.gpt import GPT

__all__ = ["GPT", "KeyValueCache"]
