"""A synthetic dataset whose entropy is known: text of a seeded Markov chain.

In: the chain's options. Out: its text, and the entropy rate that no model's loss can go below, in nats per
character. Knows nothing of models; numpy is imported where it is used, so that listing datasets stays quick.
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
LARGEST_TABLE = 50_000_000  # bytes, at 8 for each probability
FLOOR = 0.02  # share of every row spread evenly, so that the chain forgets its start and never gets stuck


class MarkovOptions(PluginOptions):
    order: int = Field(default=2, ge=0, le=6, description="Letters that the next one depends on.")
    states: int = Field(default=8, ge=2, le=26, description="How many letters there are.")
    length: int = Field(default=1_000_000, ge=1, le=100_000_000, description="Characters of the text.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Which chain, and which text of it.")
    concentration: float = Field(
        default=0.3,
        ge=0.05,
        le=1000,
        description="Dirichlet parameter of each row of the table: small is predictable, large is noise.",
    )

    @model_validator(mode="after")
    def _table_fits(self) -> MarkovOptions:
        size = 8 * self.states ** (self.order + 1)
        if size > LARGEST_TABLE:
            raise ValueError(
                f"states = {self.states} and order = {self.order} need a table of {size / 1e6:,.0f} MB; "
                f"at most {LARGEST_TABLE / 1e6:.0f} MB will do, so lower one of them"
            )
        return self


class MarkovDataset(Dataset):
    """Text of a stationary Markov chain over lower-case letters.

    Each context of `order` letters has its own distribution of the next letter, drawn once from a symmetric
    Dirichlet and mixed with a little of the even one (FLOOR). The text starts in the stationary distribution.
    The same options give the same text with any numpy: `RandomState`'s streams are frozen (NEP 19), those of
    `default_rng` are not.
    """

    summary = "synthetic text of known entropy: a seeded Markov chain"
    source = "made from its options"
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
                # The last letter needs no comparison, so a sum of 0.999… cannot lead out of the row.
                letter = bisect(cumulative, draw, row, row + states - 1) - row
                letters.append(letter)
                row = (row + letter) % contexts * states  # row + letter is the number of (context, letter)
            text += bytes(letters)
        return text.translate(LETTERS.ljust(256)).decode("ascii")

    def size(self, folders: DataFolders) -> int | None:
        options: MarkovOptions = self.options
        return options.length

    def facts(self) -> dict[str, str | float]:
        return {"entropy_rate": self.entropy_rate(), "entropy_rate_unit": "nats per character"}

    def table(self) -> NDArray[np.float64]:
        """p(letter | context), shape (states**order, states); contexts are in alphabetical order."""
        options: MarkovOptions = self.options
        even = [options.concentration] * options.states
        rows = _random(options.seed, "markov table").dirichlet(even, size=options.states**options.order)
        return (1 - FLOOR) * rows + FLOOR / options.states

    def stationary(self) -> NDArray[np.float64]:
        """How often each context occurs in the long run, shape (states**order,).

        The p with p = pT, where T takes context (x1 … xk) to (x2 … xk, y) with probability
        p(y | x1 … xk). Found by applying T until it changes nothing more than rounding does.
        """
        import numpy as np

        options: MarkovOptions = self.options
        contexts, table = options.states**options.order, self.table()
        if options.order == 0:
            return np.ones(1)
        now = np.full(contexts, 1 / contexts)
        change, smallest = np.inf, np.inf
        for _ in range(100_000):
            pairs = (now[:, None] * table).reshape(options.states, contexts)
            then = pairs.sum(axis=0)
            then /= then.sum()
            change = float(np.abs(then - now).sum())
            now = then
            if change < 1e-12 and change >= smallest:
                break
            smallest = min(change, smallest)
        return now

    def entropy_rate(self) -> float:
        """The entropy rate in nats per character, exact up to rounding.

            H = - sum over contexts c of p(c)  sum over letters y of p(y | c) ln p(y | c)

        with p(c) the stationary distribution: Cover and Thomas, Elements of Information Theory (2006),
        theorem 4.2.4, whose states are here the contexts. No predictor's mean loss is lower, in the long run.
        """
        import numpy as np

        table = self.table()
        return float(-(self.stationary() * (table * np.log(table)).sum(axis=1)).sum())


def _random(seed: int, purpose: str) -> np.random.RandomState:
    import numpy as np

    number = derive_seed(seed, purpose)
    return np.random.RandomState([number & 0xFFFFFFFF, number >> 32])
