"""The rules of the code itself: what imports what, what never occurs, how long a thing may be."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gptkit"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Layers from the bottom: a module imports from lower ones and its own. Parts of a set stand side by side and
# do not import one another.
LAYERS: list[set[str]] = [
    {"errors", "events", "files", "seeds"},
    {"native"},
    {"plugins"},
    {"experiment"},
    {"text", "model", "runs", "checkpoint", "backend", "tracking"},
    {"training", "generation", "report"},
    {"conformance"},
    {"workflows"},
    {"api", "cli"},
]
# The lowest layer is in order instead: files says what went wrong with errors.
FOUNDATION = {"files": {"errors"}}

# What must answer quickly, or be read by anyone, imports no torch until it is used.
LIGHT = ("errors", "events", "files", "seeds", "plugins", "experiment", "runs", "report", "tracking", "cli")
ASKED_FOR = ("gptkit.plugins.position",)  # a torch module, which gptkit.plugins imports when it is asked for
HEAVY = {"torch", "safetensors", "transformers", "tensorboard"}


def name_of(path: Path) -> str:
    """gptkit.text.corpus for gptkit/text/corpus.py."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """text for gptkit.text.corpus; empty for gptkit itself."""
    return module.split(".")[1] if "." in module else ""


PATHS = {name_of(path): path for path in MODULES}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in PATHS.items()}


def imports(module: str, *, when_imported: bool = False) -> Iterator[str]:
    """Full names of what a module imports; `when_imported` leaves out what waits for a call or for mypy."""

    def visit(node: ast.AST) -> Iterator[str]:
        if when_imported and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in PATHS else node.module
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(TREES[module])


def loaded_with(module: str) -> set[str]:
    """Every module that importing `module` imports, here or elsewhere."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in PATHS:
            parents = [name.rpartition(".")[0]] if "." in name else []
            todo += [*parents, *imports(name, when_imported=True)]
    return seen


def level(part: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if part in layer)


def test_every_part_of_the_package_has_a_layer() -> None:
    parts = {part_of(name) for name in PATHS} - {"", "__main__"}
    assert parts == set().union(*LAYERS)


@pytest.mark.parametrize("module", [name for name in PATHS if part_of(name) not in ("", "__main__")])
def test_imports_go_downward_only(module: str) -> None:
    part = part_of(module)
    for imported in imports(module):
        if not imported.startswith("gptkit.") or part_of(imported) == part:
            continue
        other = part_of(imported)
        beside = other in FOUNDATION.get(part, ())
        assert level(other) < level(part) or beside, f"{module} imports {imported}"


def test_the_package_itself_imports_nothing_until_it_is_asked() -> None:
    assert not [name for name in imports("gptkit", when_imported=True) if name.startswith("gptkit")]


@pytest.mark.parametrize(
    "module", [name for name in PATHS if part_of(name) in LIGHT and name not in ASKED_FOR]
)
def test_what_is_light_imports_no_torch(module: str) -> None:
    heavy = {name for name in loaded_with(module) if name.partition(".")[0] in HEAVY}
    assert not heavy


def test_the_walk_over_imports_sees_torch_where_it_is() -> None:
    assert "torch" in loaded_with("gptkit.checkpoint")
    assert "torch" in loaded_with("gptkit.plugins.position")
    assert "gptkit.errors" in loaded_with("gptkit.cli.app")
    assert "gptkit.workflows.training" not in loaded_with("gptkit.cli.app")


def test_the_help_loads_neither_pydantic_nor_rich() -> None:
    """At import; the help itself is drawn with rich."""
    tops = {name.partition(".")[0] for name in loaded_with("gptkit.cli.app")}
    assert not tops & {"pydantic", "rich", "numpy", "pooch", "jinja2"}


def test_training_starts_without_what_only_its_report_needs() -> None:
    assert "jinja2" in loaded_with("gptkit.report.run_page")
    assert "jinja2" not in loaded_with("gptkit.workflows.training")


@pytest.mark.parametrize("module", PATHS)
def test_rich_is_for_rendering_alone(module: str) -> None:
    uses = [name for name in imports(module) if name.partition(".")[0] == "rich"]
    assert not uses or module.startswith("gptkit.cli.render")


@pytest.mark.parametrize("module", PATHS)
def test_only_the_command_line_prints(module: str) -> None:
    if part_of(module) == "cli":
        return
    calls = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if ast.unparse(call.func) == "print"]


# What makes objects or code out of bytes. numpy.load unpickles only where told to, but nothing needs it.
UNPICKLING = {
    *("pickle", "cPickle", "_pickle", "pickletools", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    *("jsonpickle", "yaml", "runpy", "code", "codeop"),
}
RUNNING = {
    *("torch.load", "torch.save", "torch.jit.load", "torch.hub", "torch.package", "torch.serialization"),
    *("torch.export.load", "torch.utils.model_zoo", "torch.distributed.checkpoint", "pandas.read_pickle"),
    *("numpy.load", "numpy.save", "numpy.savez", "numpy.savez_compressed", "numpy.lib.format"),
    *("multiprocessing.connection", "os.system", "os.popen", "eval", "exec", "__import__"),
    *("builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__"),
}


def unpickling(tree: ast.AST) -> list[str]:
    """What in a module could unpickle, or run text as code; under whatever name it was imported."""
    found, known = [], {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                found += [alias.name] if _is_of(alias.name, UNPICKLING | RUNNING) else []
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                known[alias.asname or alias.name] = full
                found += [full] if _is_of(full, UNPICKLING | RUNNING) else []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            full = f"{known.get(first, first)}.{rest}".rstrip(".")
            found += [full] if _is_of(full, RUNNING) else []
        elif isinstance(node, ast.Call):
            for keyword in node.keywords:
                unsafe = keyword.arg in ("allow_pickle", "shell", "weights_only")
                found += [str(keyword.arg)] if unsafe and ast.unparse(keyword.value) != "False" else []
            if ast.unparse(node.func) == "compile":  # alone, it is the name of a field
                found.append("compile")
            if ast.unparse(node.func) in ("getattr", "importlib.import_module", "import_module"):
                said = {part.value for part in node.args if isinstance(part, ast.Constant)}
                ends = {name.rpartition(".")[2] for name in RUNNING} | UNPICKLING
                found += sorted(said & (ends - {"format", "save"}))
    return found


def _is_of(name: str, forbidden: set[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in forbidden)


@pytest.mark.parametrize("module", PATHS)
def test_nothing_unpickles_or_runs_text_as_code(module: str) -> None:
    assert unpickling(TREES[module]) == []


@pytest.mark.parametrize(
    "code",
    [
        *(
            "import pickle",
            "from pickle import loads",
            "import _pickle as json",
            "import joblib",
            "import shelve",
        ),
        *(
            "import marshal",
            "from dill import load",
            "import torch\ntorch.load('x')",
            "import torch.serialization",
        ),
        *("from torch import load", "from torch import load as read", "import torch as t\nt.load('x')"),
        *(
            "import torch\nread = torch.load",
            "import torch\ntorch.save({}, 'x')",
            "import torch\ntorch.jit.load('x')",
        ),
        *("import numpy as np\nnp.load('x')", "from numpy import load", "import numpy\nnumpy.load('x')"),
        *("read('x', allow_pickle=True)", "read('x', weights_only=False or True)", "run('x', shell=True)"),
        *(
            "eval('1')",
            "exec('1')",
            "f = eval",
            "compile(x)",
            "__import__('x')",
            "import builtins\nbuiltins.exec('1')",
        ),
        *("getattr(torch, 'load')('x')", "import importlib\nimportlib.import_module('pickle')"),
        *("import os\nos.system('x')", "from os import popen"),
    ],
)
def test_the_search_finds_what_unpickles_under_any_name(code: str) -> None:
    assert unpickling(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "import safetensors.torch\nsafetensors.torch.load(b'')",
        "import json\njson.loads('1')",
        "import torch\nmodel = torch.compile(model)",
        "import re\nre.compile('x')",
        "model.load(x)\nweights.save(y)",
        "np.array([1], dtype=object)",
    ],
)
def test_the_search_lets_the_rest_pass(code: str) -> None:
    assert not unpickling(ast.parse(code))


@pytest.mark.parametrize("module", PATHS)
def test_every_module_says_what_it_is(module: str) -> None:
    assert ast.get_docstring(TREES[module])


@pytest.mark.parametrize("module", PATHS)
def test_no_module_is_over_400_lines_and_no_function_over_60(module: str) -> None:
    """A function's lines are those of its body: a signature or a docstring may be as long as it needs."""
    assert len(PATHS[module].read_text(encoding="utf-8").splitlines()) <= 400
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1
            assert lines <= 60, f"{node.name} has {lines} lines"


def test_the_model_is_one_file_of_at_most_300_lines() -> None:
    assert len((PACKAGE / "model" / "gpt.py").read_text(encoding="utf-8").splitlines()) <= 300


def test_no_file_of_the_package_names_a_place_on_someones_machine() -> None:
    place = re.compile(r"(?<![\w.])/(work|root|home|Users|tmp|mnt)\b")
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert not [path for path in files if place.search(path.read_text(encoding="utf-8"))]
