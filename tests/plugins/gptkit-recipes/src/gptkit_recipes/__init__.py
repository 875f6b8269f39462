"""Invented recipes, whose amounts are proportional to the number of people: a text to calculate with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

from pydantic import Field

from gptkit.plugins import DataFolders, Dataset, PluginOptions

T = TypeVar("T")

DISHES = ("soup", "stew", "pie", "curry", "salad", "gratin")
MANNERS = ("Spicy", "Simple", "Winter", "Grandmother's", "Golden", "Smoky")
VEGETABLES = ("pumpkin", "leek", "carrot", "potato", "spinach", "cabbage", "fennel", "beetroot")
OTHERS = (  # ingredient, amount per person, unit
    ("cream", 50, "ml"),
    ("butter", 15, "g"),
    ("lentils", 60, "g"),
    ("rice", 75, "g"),
    ("stock", 200, "ml"),
    ("cheese", 40, "g"),
)
CUTS = ("Slice", "Dice", "Grate", "Peel and halve")
HEATS = ("Fry", "Simmer", "Roast", "Braise")
ENDS = (
    "Serve hot.",
    "Serve with bread.",
    "Let it rest before serving.",
    "It tastes even better the next day.",
)


class RecipesDataset(Dataset):
    """Recipes of a seeded grammar; a larger count adds recipes at the end."""

    class Options(PluginOptions):
        count: int = Field(default=2000, ge=1, le=1_000_000, description="Number of recipes.")
        largest: int = Field(default=12, ge=1, le=1000, description="Most people that a recipe is for.")
        seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the random numbers.")

    summary = "invented recipes, with amounts for a number of people"
    source = "generated from its options"

    def read(self, folders: DataFolders) -> str:
        options: RecipesDataset.Options = self.options
        dice = _Dice(options.seed)
        return "\n".join(_recipe(dice, options.largest) for _ in range(options.count))

    def facts(self) -> dict[str, str | float]:
        options: RecipesDataset.Options = self.options
        return {"recipes": options.count}


def _recipe(dice: _Dice, largest: int) -> str:
    people = 1 + dice.roll(largest)
    vegetable = dice.pick(VEGETABLES)
    title = f"{dice.pick(MANNERS)} {vegetable} {dice.pick(DISHES)} for {people}"
    return "\n".join([title, *_ingredients(dice, people, vegetable), _method(dice, vegetable), ""])


def _ingredients(dice: _Dice, people: int, vegetable: str) -> Iterator[str]:
    yield f"- {people * 150} g {vegetable}"
    first, second = dice.roll(len(OTHERS)), dice.roll(len(OTHERS))
    for number in sorted({first, second}):
        what, amount, unit = OTHERS[number]
        yield f"- {people * amount} {unit} {what}"


def _method(dice: _Dice, vegetable: str) -> str:
    minutes = 5 * (1 + dice.roll(9))
    return f"{dice.pick(CUTS)} the {vegetable}. {dice.pick(HEATS)} for {minutes} minutes. {dice.pick(ENDS)}"


class _Dice:
    """A linear congruential generator, that of Knuth's MMIX: the same on every Python, unlike `random`."""

    def __init__(self, seed: int) -> None:
        self._state = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "big")

    def roll(self, sides: int) -> int:
        """A number in [0, sides), from the upper bits, whose period is longer."""
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self._state >> 32) * sides >> 32

    def pick(self, things: Sequence[T]) -> T:
        return things[self.roll(len(things))]
