"""The reference pages have everything that they are generated from."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import typer

from gptkit.cli.app import app
from gptkit.experiment.fields import fields
from gptkit.plugins import registry

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("documentation_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rendered(hooks: Any, page: str) -> str:
    text: str = hooks.on_page_markdown((DOCS / page).read_text("utf-8"))
    return text


def test_every_field_and_built_in_plugin_is_on_the_page_of_experiment_files(hooks: Any) -> None:
    page = rendered(hooks, "experiment-files.md")
    rows = page.splitlines()
    for field in fields():
        if field.key in hooks.HAVE_A_SECTION:
            continue
        name = field.key.rpartition(".")[2]
        start = f"| `{name}`<br>`{field.flag.name}` |" if field.flag else f"| `{name}` |"
        assert [row for row in rows if row.startswith(start) and field.description.replace("|", "\\|") in row]
    for family in registry.KINDS:
        for name in registry.names(family):
            if registry.find(family, name).distribution == registry.OWN:
                assert f"| `{name}` |" in page
    assert "<!-- fields" not in page


def test_every_command_and_option_is_on_the_page_of_commands(hooks: Any) -> None:
    page = rendered(hooks, "commands.md")
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        assert f"\n## gptkit {name}\n" in page
        for inner, subcommand in getattr(command, "commands", {}).items():
            section = page.split(f"\n### gptkit {name} {inner}\n")[1].split("\n## ")[0]
            for option in subcommand.params:
                if option.param_type_name == "option" and option.name != "help":
                    assert f"`{option.opts[0]}`" in section
    for code in (*range(11), 130, 143):
        assert f"\n| {code} | " in page


def test_the_sizes_of_the_parts_are_those_of_their_files(hooks: Any) -> None:
    page = rendered(hooks, "architecture.md")
    files = list((DOCS.parent / "gptkit").rglob("*.py"))
    lines = sum(len(file.read_text("utf-8").splitlines()) for file in files)
    assert f"\n| all | {lines:,} | {len(files)} |\n" in page
    assert (
        f"\n| `seeds` | {len((DOCS.parent / 'gptkit' / 'seeds.py').read_text().splitlines())} | 1 |\n" in page
    )


def test_a_marker_that_names_nothing_fails_the_build(hooks: Any) -> None:
    with pytest.raises(ValueError, match="no fields of 'modle'"):
        hooks.on_page_markdown("<!-- fields: modle -->")
    with pytest.raises(KeyError):
        hooks.on_page_markdown("<!-- plugins: toknizer -->")
