"""Contract tests for plugins: subclass one for your plugin, and pytest runs it.

    from gptkit.testing import TokenizerContract
    from my_package import WordTokenizer

    class TestWordTokenizer(TokenizerContract):
        plugin = WordTokenizer

There is one contract per family: TokenizerContract, PositionContract, DatasetContract and TrackerContract.
Their docstrings list what to set besides `plugin`; the docstring of each check states its rule and the fix.
`gptkit plugins check` and `gptkit.check_plugin` run the same checks without pytest. Nothing is downloaded.

PositionContract needs torch, so each contract is imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gptkit.plugins import DataFolders, PluginOptions
from gptkit.plugins.registry import DATASETS, POSITIONS, TOKENIZERS, TRACKERS
from gptkit.testing.contract import CheckResult, ContractError, PluginContract, Verdict, check, run_contract

if TYPE_CHECKING:
    from gptkit.testing.dataset import DatasetContract
    from gptkit.testing.position import PositionContract
    from gptkit.testing.tokenizer import TokenizerContract
    from gptkit.testing.tracker import TrackerContract

__all__ = [
    "CheckResult",
    "ContractError",
    "DatasetContract",
    "PluginContract",
    "PositionContract",
    "TokenizerContract",
    "TrackerContract",
    "Verdict",
    "check",
    "check_plugin",
    "contract_for",
]


_CONTRACTS = {
    TOKENIZERS: "TokenizerContract",
    POSITIONS: "PositionContract",
    DATASETS: "DatasetContract",
    TRACKERS: "TrackerContract",
}


def __getattr__(name: str) -> object:
    for family, contract in _CONTRACTS.items():
        if name == contract:
            return _base(family)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _base(family: str) -> type[PluginContract]:
    """The contract of a family."""
    if family == TOKENIZERS:
        from gptkit.testing import tokenizer

        return tokenizer.TokenizerContract
    if family == POSITIONS:
        from gptkit.testing import position

        return position.PositionContract
    if family == DATASETS:
        from gptkit.testing import dataset

        return dataset.DatasetContract
    from gptkit.testing import tracker

    return tracker.TrackerContract


def contract_for(
    family: str, plugin: object, options: PluginOptions | None = None, folders: DataFolders | None = None
) -> type[PluginContract]:
    """The contract of a family (an entry-point group) for one plugin, as an author would write it."""
    base = _base(family)
    return type(base.__name__, (base,), {"plugin": plugin, "options": options, "folders": folders})


def check_plugin(
    family: str, plugin: object, options: PluginOptions | None = None, folders: DataFolders | None = None
) -> Iterator[CheckResult]:
    """The results of all checks of a plugin, one by one, from the basic to the special.

    `plugin` may be any object, even one that is not a plugin. Without `options` it is checked with
    `plugin.Options.example`. `folders` is where a dataset looks for its text.
    """
    yield from run_contract(contract_for(family, plugin, options, folders))
