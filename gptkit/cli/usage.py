"""What is said of a command line that cannot be read, in gptkit's words.

In: what typer says, and the line. Out: one to three lines: what is wrong, what would be right, where to look.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

_SHOWN = {  # an argument that is missing, by the command that wants it
    "gptkit train": "gptkit train experiments/shakespeare.toml",
    "gptkit resume": "gptkit resume latest",
    "gptkit runs verify": "gptkit runs verify latest",
    "gptkit datasets show": "gptkit datasets show shakespeare",
    "gptkit datasets fetch": "gptkit datasets fetch shakespeare",
    "gptkit datasets add": "gptkit datasets add my_text novel.txt",
    "gptkit plugins show": "gptkit plugins show rope",
    "gptkit plugins new": "gptkit plugins new tokenizer my_tokenizer",
}
_NUMBERS = {  # of pydantic, and of click before it
    r"(Input should be|'.*' is not) a valid (integer|int)\b.*": "should be a whole number, as in 200",
    r"(Input should be|'.*' is not) a valid (number|float)\b.*": "should be a number, as in 0.5",
}


def explain(said: str, command: str, arguments: Sequence[str]) -> str:
    """What typer said of `arguments` to `command`, and what to do."""
    for pattern, words in _NUMBERS.items():
        said = re.sub(pattern, words, said)
    said = said.rstrip(".") if said.startswith("Missing argument") else said
    if said.startswith("Missing argument") and command in _SHOWN:
        said += f"; as in: {_SHOWN[command]}"
    if said.startswith("No such command") and arguments and arguments[0].endswith(".toml"):
        said += f" To train it: gptkit train {shlex.join(arguments)}"
    return f"{said}\nSee '{command} --help'."
