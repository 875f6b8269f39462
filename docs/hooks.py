"""Fills the reference pages from the code while mkdocs builds them, so that no table is maintained manually.

Input: the Markdown of a page with markers such as `<!-- fields: model -->`. Output: the same page with a
table in the place of each marker. A marker that names nothing fails the build.

- `fields: SECTION`: the fields of a table of experiment files, from the schema; `top` is the file itself.
- `plugins: KIND`: the built-in plugins of a family with their options.
- `checks: KIND`: what `gptkit plugins check` checks of a plugin of that family, from `gptkit.testing`.
- `commands`: every command with its arguments and options, from Typer.
- `exit codes`: from gptkit.errors.
- `mappings`: what `gptkit export` maps to what, from gptkit.interchange.
- `layers`, `sizes` and `modules`: the parts of gptkit, from pyproject.toml and the files.
- `file: PATH`: a file of the checkout as a code block; `include: PATH`: a Markdown file as it is.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from gptkit import errors
from gptkit.cli.app import app
from gptkit.experiment.fields import ExperimentField, fields
from gptkit.interchange.mappings import MAPPINGS, Form
from gptkit.plugins import registry
from gptkit.testing import contract_for

ROOT = Path(__file__).parent.parent
MARKER = re.compile(
    r"^<!-- (fields|plugins|checks|commands|exit codes|layers|mappings|modules|sizes|file|include)"
    r"(?:: (\S+))? -->$",
    re.MULTILINE,
)
EXIT_CODES = {
    0: "Done.",
    1: "A defect of gptkit: please report it.",
    130: "Interrupted (Ctrl-C, SIGINT); a run in training was saved.",
    143: "Terminated (SIGTERM, or SIGHUP of a closed terminal); a run in training was saved.",
}
OPTIMIZERS = ("adamw", "muon")
HAVE_A_SECTION = ("optimizer.type", "tracking")  # described in words on the page
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
    """Text as code; a cell of a table may hold no vertical line, so one is written as HTML."""
    if "|" in text:
        return f"<code>{text.replace('|', '&#124;')}</code>"
    return f"`{text}`" if text else ""


# Experiment files


def field_table(name: str) -> Iterator[str]:
    """The fields of one table of an experiment file. Both optimizers have a table of their own."""
    optimizer = name if name in OPTIMIZERS else ""
    table_name = {"top": "", optimizer: "optimizer"}.get(name, name)
    rows = [
        (field_name(field), takes(field), code(field.default_toml) or "not set", field.description)
        for field in fields()
        if field.table == table_name and field.optimizer == optimizer and field.key not in HAVE_A_SECTION
    ]
    if not rows:
        raise ValueError(f"experiment files have no fields of {name!r}")
    yield from table(("field", "takes", "default", "what it is"), rows)


def field_name(field: ExperimentField) -> str:
    name = code(field.key.rpartition(".")[2])
    return f"{name}<br>{code(field.flag.name)}" if field.flag else name


def takes(field: ExperimentField) -> str:
    """The type, the unit and the bounds of a field, as "integer ≥ 1, in steps"."""
    kind = re.sub(
        r", (<=?) ([\d,.]+)", lambda found: "" if number(found[2]) >= UNBOUNDED else found[0], field.type
    )
    kind = re.sub(r'"(\w+)"', r"`\1`", kind).replace(", >", " >").replace(">=", "≥").replace("<=", "≤")
    return f"{kind}, in {field.unit}" if field.unit else kind


def number(digits: str) -> float:
    return float(digits.replace(",", ""))


def plugin_table(kind: str) -> Iterator[str]:
    """The built-in plugins of a family; those of other packages are left out."""
    family = registry.FAMILIES[kind]
    described = [registry.describe_plugin(family, name) for name in registry.names(family)]
    yield from table(
        ("name", "what it is", "options"),
        [
            (code(each.plugin.name), each.summary, "; ".join(map(option_text, each.options)) or "none")
            for each in described
            if each.plugin.distribution == registry.OWN
        ],
    )


def option_text(option: registry.PluginOption) -> str:
    value = "required" if option.required else code(json.dumps(option.default))
    return f"{code(option.name)} ({value}): {option.description.rstrip('.')}"


def check_table(kind: str) -> Iterator[str]:
    """The checks of a family's contract: the rule of each, and what to change where a plugin breaks it."""
    contract = contract_for(registry.FAMILIES[kind], None)
    rows = []
    for name in dict.fromkeys(name for base in reversed(contract.__mro__) for name in vars(base)):
        if name.startswith("test_"):
            rule, *rest = inspect.getdoc(getattr(contract, name)).split("\n\n")  # type: ignore[union-attr]
            fix = next((text.removeprefix("Fix: ") for text in rest if text.startswith("Fix: ")), "")
            rows.append((name.removeprefix("test_").replace("_", " "), rule, fix))
    yield from table(("check", "rule", "to fix it"), rows)


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


def mapping_table() -> Iterator[str]:
    """The rows of gptkit/interchange/mappings.py."""

    def either(values: tuple[object, ...]) -> str:
        return ", ".join({True: "yes", False: "no"}.get(value, code(str(value))) for value in values)

    rows = []
    for row in MAPPINGS:
        options = [either(values) for values in row.options().values()]
        form = "" if row.form is Form.AS_IT_IS else row.form.value
        rows.append((*options, *(code(layout or "") or "-" for layout in (row.hugging_face, row.gguf)), form))
    headings = (*map(code, MAPPINGS[0].options()), "transformers", "llama.cpp", "MLP written as")
    yield from table(headings, rows)


# The code


def layers() -> list[list[str]]:
    """The parts of gptkit from the top, as import-linter orders them; parts of one layer are independent."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    (found,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    return [layer.split(" | ") for layer in found]


def layer_table() -> Iterator[str]:
    rows = [
        (code(part), str(number), summary_of(part))
        for number, layer in enumerate(layers(), start=1)
        for part in layer
    ]
    yield from table(("part", "layer", "what it does"), rows)


def size_table() -> Iterator[str]:
    """The Python files of each part and their lines."""
    sizes = {part: size(modules_of(part)) for layer in layers() for part in layer}
    rows = [(code(part), f"{lines:,}", str(files)) for part, (lines, files) in sizes.items()]
    lines, files = size(sorted((ROOT / "gptkit").rglob("*.py")))
    yield from table(("part", "lines", "files"), [*rows, ("all", f"{lines:,}", str(files))])


def modules_of(part: str) -> list[Path]:
    folder = ROOT / "gptkit" / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def size(modules: list[Path]) -> tuple[int, int]:
    return sum(len(module.read_text("utf-8").splitlines()) for module in modules), len(modules)


def summary_of(part: str) -> str:
    folder = ROOT / "gptkit" / part
    return summary(folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py"))


def summary(module: Path) -> str:
    """The first paragraph of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(module.read_text("utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def module_table() -> Iterator[str]:
    """Each module with the first paragraph of its docstring, by part, from the top."""
    for part in (part for layer in layers() for part in layer):
        folder = ROOT / "gptkit" / part
        if folder.is_dir():
            modules = [module for module in sorted(folder.rglob("*.py")) if module.name != "__init__.py"]
            yield from ("", f"### gptkit.{part}", "", summary_of(part))
            rows = [(code(module.relative_to(folder).as_posix()), summary(module)) for module in modules]
            yield from table(("module", "what it does"), rows)


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
    "fields": field_table,
    "plugins": plugin_table,
    "checks": check_table,
    "commands": commands,
    "exit codes": exit_codes,
    "layers": layer_table,
    "mappings": mapping_table,
    "modules": module_table,
    "sizes": size_table,
    "file": file,
    "include": include,
}
