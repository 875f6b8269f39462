"""Fills the reference pages from the code while mkdocs builds them, so that no table is copied by hand.

In: the Markdown of a page with markers such as `<!-- fields: model -->`. Out: the same page with a table in
the place of each marker. A marker that names nothing fails the build.

- `fields: SECTION`: the fields of a table of experiment files, from the schema; `top` is the file itself.
- `plugins: KIND`: the built-in plugins of a family with their options.
- `commands`: every command with its arguments and options, from Typer.
- `exit codes`: from gptkit.errors.
- `file: PATH`: a file of the checkout as a code block; `include: PATH`: a Markdown file as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import typer
from gptkit.plugins.listing import FAMILIES, describe_plugin, options_of

from gptkit import errors
from gptkit.cli.app import app
from gptkit.experiment.schema import AdamWSettings, Experiment, MuonSettings
from gptkit.plugins import registry

ROOT = Path(__file__).parent.parent
MARKER = re.compile(r"^<!-- (fields|plugins|commands|exit codes|file|include)(?:: (\S+))? -->$", re.MULTILINE)
EXIT_CODES = {
    0: "Done.",
    1: "A defect of gptkit: please report it.",
    130: "Interrupted (Ctrl-C, SIGINT); a run in training was saved.",
    143: "Terminated (SIGTERM, or SIGHUP of a closed terminal); a run in training was saved.",
}
UNBOUNDED = 1_000_000  # upper limits from here on only keep absurd numbers out, so the tables omit them


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces the markers of a page (mkdocs calls this for each)."""
    return MARKER.sub(lambda found: "\n".join(_WRITERS[found[1]](*filter(None, [found[2]]))), markdown)


def table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    """A Markdown table, surrounded by blank lines."""
    yield ""
    for row in (headings, ("---",) * len(headings), *rows):
        yield "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in row) + " |"
    yield ""


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def toml(value: Any) -> str:
    """A default as an experiment file writes it."""
    if value is None:
        return "not set"
    if hasattr(value, "model_dump"):  # a plugin named by default
        value = value.model_dump()["type"]
    return code(json.dumps(value))


# Experiment files


def fields(section: str) -> Iterator[str]:
    """The fields of one table of an experiment file. Both optimizers have a table of their own."""
    models = {"adamw": AdamWSettings, "muon": MuonSettings}
    if section in models:
        model: Any = models[section]
    elif section == "top":
        model = Experiment
    else:
        model = type(getattr(Experiment(), section))
    prefix = {"top": "", "adamw": "optimizer.", "muon": "optimizer."}.get(section, f"{section}.")
    flags = train_flags()
    rows = []
    for row in options_of(SimpleNamespace(Options=model)):
        if section == "top" and row.name not in ("name", "seed", "tokenizer"):
            continue  # the tables, which have sections of their own
        flag = flags.get(prefix + row.name)
        names = code(row.name) + (f"<br>{code(flag)}" if flag else "")
        rows.append((names, takes(row.kind), toml(row.default), row.description))
    yield from table(("field", "takes", "default", "what it is"), rows)


def takes(kind: str) -> str:
    """The type and the bounds of a field, as "integer ≥ 1"."""
    kind = re.sub(r", (<=?) ([\d,.]+)", lambda found: "" if number(found[2]) >= UNBOUNDED else found[0], kind)
    kind = re.sub(r'"(\w+)"', r"`\1`", kind).replace(", >", " >").replace("object", "a name or a table")
    return kind.replace(">=", "≥").replace("<=", "≤")


def number(digits: str) -> float:
    return float(digits.replace(",", ""))


def train_flags() -> dict[str, str]:
    """The longest flag of `gptkit train` for each field that has one: {"training.max_steps": "--steps"}."""
    command: Any = typer.main.get_command(app)
    found = {}
    for option in command.commands["train"].params:
        named = re.search(r"\[([a-z_.]+)\]$", getattr(option, "help", None) or "")
        if named:
            found[named[1]] = option.opts[0]
    return found


def plugins(kind: str) -> Iterator[str]:
    """The built-in plugins of a family; those of other packages are left out."""
    family = FAMILIES[kind]
    rows = []
    for name in registry.names(family):
        plugin = describe_plugin(family, name)
        if plugin.row.distribution == "gptkit":
            options = "; ".join(
                f"{code(option.name)} ({'required' if option.required else toml(option.default)}): "
                f"{option.description.rstrip('.')}"
                for option in plugin.options
            )
            rows.append((code(name), plugin.row.summary, options or "none"))
    yield from table(("name", "what it is", "options"), rows)


# Commands


def commands() -> Iterator[str]:
    """A section for each command, and below it one for each of its subcommands."""
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        yield from describe(f"gptkit {name}", command, "##")
        for inner, subcommand in getattr(command, "commands", {}).items():
            yield from describe(f"gptkit {name} {inner}", subcommand, "###")


def describe(path: str, command: Any, heading: str) -> Iterator[str]:
    context = command.make_context(path, [], resilient_parsing=True)
    usage = " ".join(part for part in command.collect_usage_pieces(context) if part != "[OPTIONS]")
    yield from ("", f"{heading} {path}", "")
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    shown = [option for option in options if not option.hidden and option.name != "help"]
    yield from (
        "```text",
        f"{path} {usage.replace('{', '').replace('}', '')}".rstrip() + " [OPTIONS]",
        "```",
        "",
    )
    yield from prose(command.help or "")
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    if arguments:
        rows = [
            (code(argument.metavar or argument.name.upper()), plain(argument.help)) for argument in arguments
        ]
        yield from table(("argument", "what it is"), rows)
    if shown:
        yield from table(("option", "takes", "what it does"), [option_row(option) for option in shown])


def option_row(option: Any) -> tuple[str, str, str]:
    names = ", ".join(map(code, [*option.opts, *option.secondary_opts]))
    takes = "" if option.is_flag else code(str(option.metavar or option.type.name))
    return names, takes, plain(option.help)


def plain(text: str | None) -> str:
    """A help text without rich's escapes, and with the field that a flag sets as code."""
    return re.sub(r"\[([a-z_]+(?:\.[a-z_]+)*)\]$", r"(`\1`)", (text or "").replace("\\[", "["))


def prose(help_text: str) -> Iterator[str]:
    """A command's help: its examples as a block of code, then the rest as paragraphs."""
    examples, text = [], []
    for paragraph in help_text.split("\n\n"):
        line = re.sub(r"^Examples?:\s*", "", paragraph.strip())
        is_example = re.match(r"(gptkit|cat|echo) ", line) and not line.endswith(".")
        if line:
            (examples if is_example and not text else text).append(line)
    yield from ("\n\n".join(text), "")
    if examples:
        yield from ("```sh", *examples, "```", "")


def exit_codes() -> Iterator[str]:
    """What each exit code means, from the errors that have it."""
    found = dict(EXIT_CODES)
    for line in (errors.__doc__ or "").splitlines():
        named = re.match(r"[\s│├└─]*\w+Error\s+(\d+)\s+(\S.*)$", line)
        if named and int(named[1]) not in found:
            found[int(named[1])] = f"{named[2][0].upper()}{named[2][1:]}."
    yield from table(("exit code", "meaning"), [(str(number), found[number]) for number in sorted(found)])


# Files of the checkout


def file(path: str) -> Iterator[str]:
    yield from (
        f'```{Path(path).suffix[1:]} title="{path}"',
        (ROOT / path).read_text("utf-8").rstrip(),
        "```",
    )


def include(path: str) -> Iterator[str]:
    """A Markdown file; its links are written from the root of the checkout, so docs/ is cut off."""
    yield (ROOT / path).read_text("utf-8").replace("](docs/", "](")


_WRITERS: dict[str, Any] = {
    "fields": fields,
    "plugins": plugins,
    "commands": commands,
    "exit codes": exit_codes,
    "file": file,
    "include": include,
}
