"""A synthetic dataset of known entropy: text of a seeded Markov chain.

Input: the chain's options. Output: its text, and the entropy rate in nats per character, below which no
model's loss can go. numpy is imported where it is used, so that listing datasets stays quick.
"""

from __future__ import annotations

from array import array
from bisect import bisect
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from gptkit.plugins.dataset import DataFolders, Dataset
from gptkit.plugins.options import PluginOptions
from gptkit.seeds import derive_seed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LETTERS = b"abcdefghijklmnopqrstuvwxyz"
MAX_TABLE = 50_000_000  # bytes, 8 per probability
FLOOR = 0.02  # weight of the uniform distribution in each row, which makes the chain ergodic


class MarkovOptions(PluginOptions):
    order: int = Field(default=2, ge=0, le=6, description="Number of letters that the next one depends on.")
    states: int = Field(default=8, ge=2, le=26, description="Size of the alphabet.")
    length: int = Field(
        default=1_000_000, ge=1, le=100_000_000, description="Length of the text, in characters."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the chain and of its text.")
    concentration: float = Field(
        default=0.3,
        ge=0.05,
        le=1000,
        description="Dirichlet parameter of each row of the transition table: small is predictable, large is "
        "noise.",
    )

    @model_validator(mode="after")
    def _table_fits(self) -> MarkovOptions:
        size = 8 * self.states ** (self.order + 1)
        if size > MAX_TABLE:
            raise ValueError(
                f"states = {self.states} and order = {self.order} need a table of {size / 1e6:,.0f} MB, more "
                f"than the limit of {MAX_TABLE / 1e6:.0f} MB; lower one of them"
            )
        return self


class MarkovDataset(Dataset):
    """Text of a stationary Markov chain over lower-case letters.

    Each context of `order` letters has its own distribution of the next letter, drawn from a symmetric
    Dirichlet distribution and mixed with the uniform one (FLOOR). The text starts in the stationary
    distribution. The same options give the same text with every version of numpy: the streams of
    `RandomState` are frozen (NEP 19), those of `default_rng` are not.
    """

    summary = "synthetic text of known entropy: a seeded Markov chain"
    source = "generated from its options"
    Options = MarkovOptions

    def read(self, folders: DataFolders) -> str:
        import numpy as np

        options: MarkovOptions = self.options
        random = _random(options.seed, "markov text")
        states, contexts = options.states, options.states**options.order
        cumulative = array("d", np.cumsum(self.table(), axis=1).tobytes())
        start = np.cumsum(self.stationary()).searchsorted(random.random_sample())
        row = min(int(start), contexts - 1) * states
        text = bytearray()
        while len(text) < options.length:
            letters = []
            for draw in random.random_sample(min(options.length - len(text), 65_536)).tolist():
                # The last letter is not compared, so a cumulative sum of 0.999… cannot leave the row
                letter = bisect(cumulative, draw, row, row + states - 1) - row
                letters.append(letter)
                row = (row + letter) % contexts * states  # row + letter numbers (context, letter)
            text += bytes(letters)
        return text.translate(LETTERS.ljust(256)).decode("ascii")

    def size(self, folders: DataFolders) -> int | None:
        options: MarkovOptions = self.options
        return options.length

    def facts(self) -> dict[str, str | float]:
        return {"entropy_rate": self.entropy_rate(), "entropy_rate_unit": "nats per character"}

    def table(self) -> NDArray[np.float64]:
        """p(letter | context), shape (states**order, states); contexts in alphabetical order."""
        options: MarkovOptions = self.options
        alpha = [options.concentration] * options.states
        rows = _random(options.seed, "markov table").dirichlet(alpha, size=options.states**options.order)
        return (1 - FLOOR) * rows + FLOOR / options.states

    def stationary(self) -> NDArray[np.float64]:
        """The stationary distribution of contexts, shape (states**order,).

        Solves p = pT, where T takes context (x1 … xk) to (x2 … xk, y) with probability p(y | x1 … xk), by
        power iteration until only rounding changes p.
        """
        import numpy as np

        options: MarkovOptions = self.options
        contexts, table = options.states**options.order, self.table()
        if options.order == 0:
            return np.ones(1)
        p = np.full(contexts, 1 / contexts)
        smallest = np.inf
        for _ in range(100_000):
            following = (p[:, None] * table).reshape(options.states, contexts).sum(axis=0)
            following /= following.sum()
            change = float(np.abs(following - p).sum())
            p = following
            if smallest <= change < 1e-12:
                break
            smallest = min(change, smallest)
        return p

    def entropy_rate(self) -> float:
        """The entropy rate in nats per character, exact up to rounding.

            H = - sum over contexts c of p(c)  sum over letters y of p(y | c) ln p(y | c)

        with p(c) the stationary distribution: Cover and Thomas, Elements of Information Theory (2006),
        theorem 4.2.4, with contexts as states. The expected loss of every predictor is at least that.
        """
        import numpy as np

        table = self.table()
        return float(-(self.stationary() * (table * np.log(table)).sum(axis=1)).sum())


def _random(seed: int, purpose: str) -> np.random.RandomState:
    import numpy as np

    number = derive_seed(seed, purpose)
    return np.random.RandomState([number & 0xFFFFFFFF, number >> 32])
