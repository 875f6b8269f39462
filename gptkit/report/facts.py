"""What a run's record says, as rows of a table: a name and a text each.

In: run.json as a dict, which may be a stranger's: any value may be of any type. Out: words. A fact that is
missing or not what it should be is left out.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from gptkit.report.curves import is_number
from gptkit.runs import Run, is_locked

Row = tuple[str, str]

MAX_TEXT, MAX_ROWS = 400, 60  # characters of a value, rows of a table

_ENDINGS = {
    "finished": "It reached its last step.",
    "stopped": "It was asked to stop before its last step, and was saved.",
    "interrupted": "It was interrupted (Ctrl-C, or SIGINT).",
    "terminated": "It was asked to end by the system (SIGTERM, or its terminal was closed).",
    "diverged": "The loss or a gradient was not finite; the state of that step was not saved.",
    "failed": "An error ended it.",
    "running": "It is being trained now; this page shows it as far as it has come.",
    "cut off": "It ended without a word, as a killed process does, or was copied while it trained.",
}


def text_of(value: Any) -> str:
    """A value to read; "" where there is none."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        text = f"{value:,}"
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"


def table(record: dict[str, Any], key: str) -> dict[str, Any]:
    """The table of that name in a record; empty where it has none."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def number(record: dict[str, Any], key: str) -> float | None:
    value = record.get(key)
    return float(value) if is_number(value) else None


def rows(pairs: Iterable[tuple[str, Any]]) -> list[Row]:
    """Those that have a value, as text."""
    shown = [(name[:MAX_TEXT], text_of(value)) for name, value in pairs]
    return [(name, text) for name, text in shown if text][:MAX_ROWS]


def moment(value: Any) -> str:
    """A moment of the record, to the second, with its distance from UTC."""
    try:
        return datetime.fromisoformat(value).strftime("%Y-%m-%d %H:%M:%S %z").strip()
    except (TypeError, ValueError):
        return text_of(value)


def status_of(run: Run, record: dict[str, Any]) -> str:
    status = record.get("status")
    if status in ("starting", "running"):
        return "running" if is_locked(run) else "cut off"
    return text_of(status)[:40] if isinstance(status, str) and status else "unknown"


def why_it_ended(status: str, record: dict[str, Any]) -> str:
    """In a sentence; the run's own reason where it gave one."""
    reason = record.get("reason")
    if isinstance(reason, str) and reason:
        return f"Why it ended: {text_of(reason)}."
    return _ENDINGS.get(status, "Its record does not say how it ended.")


def dataset_rows(record: dict[str, Any]) -> list[Row]:
    dataset = table(record, "dataset")
    used, requested = dataset.get("used"), dataset.get("requested")
    return rows(
        [
            ("Dataset", dataset.get("title")),
            ("As it was used", used if used != {"type": dataset.get("title")} else None),
            ("As it was asked for", requested if requested != used else None),
            ("Characters", dataset.get("characters")),
            ("SHA-256 of the text", dataset.get("sha256")),
            *((str(name), value) for name, value in list(table(dataset, "facts").items())[:20]),
        ]
    )


def tokenizer_rows(record: dict[str, Any]) -> list[Row]:
    tokenizer = table(record, "tokenizer")
    return rows(
        [
            ("Tokenizer", tokenizer.get("type")),
            ("Vocabulary", tokenizer.get("vocab_size")),
            ("Tokens to train on", tokenizer.get("train_tokens")),
            ("Tokens to evaluate on", tokenizer.get("val_tokens")),
            ("SHA-256 of the tokenizer", tokenizer.get("sha256")),
        ]
    )


def plugin_rows(record: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Of each plugin what it is, its name, its package and the version of that."""
    plugins = record.get("plugins")
    found = []
    for plugin in plugins[:MAX_ROWS] if isinstance(plugins, list) else []:
        if isinstance(plugin, dict):
            name, package, version = (text_of(plugin.get(key)) for key in ("name", "distribution", "version"))
            found.append((text_of(plugin.get("family")).removeprefix("gptkit."), name, package, version))
    return found


def environment_rows(record: dict[str, Any]) -> list[Row]:
    return rows((str(name), value) for name, value in list(table(record, "environment").items())[:MAX_ROWS])


def commands(run: Run, record: dict[str, Any]) -> list[Row]:
    """What each command is for, and the command, as from the folder above the one that holds the run."""
    folder = f"{run.path.absolute().parent.name}/{run.id}".lstrip("/")
    again = ["gptkit", "train", f"{folder}/{run.experiment_file.name}"]
    source = table(record, "loaded_from").get("run")
    if isinstance(source, str) and source:
        again += ["--load", source[:MAX_TEXT]]
    made = record.get("command")
    return [
        ("Train the same again, as a new run", shlex.join(again)),
        ("Go on with this one", shlex.join(["gptkit", "resume", folder])),
        ("Write with its model", shlex.join(["gptkit", "generate", folder, "-n", "300"])),
        ("Check its files", shlex.join(["gptkit", "runs", "verify", folder])),
        *([("It was started with", text_of(made))] if isinstance(made, str) and made else []),
    ]
