"""Datasets by name: listed, resolved, described, fetched and added; and the commands for it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gptkit.cli.commands.datasets import datasets_app
from gptkit.cli.display.tables import size_text
from gptkit.data import catalog as catalogue
from gptkit.data.catalog import (
    add_text,
    data_folders,
    describe_dataset,
    fetch_dataset,
    list_datasets,
    resolve_dataset,
)
from gptkit.data.datasets.shakespeare import ShakespeareDataset
from gptkit.errors import DataError, GptkitError, PluginError, UsageError
from gptkit.experiment.schema import PluginTable
from gptkit.plugins import DataFolders, registry

BUILT_IN = ["avatar_script", "harry_potter", "hf", "markov", "python-docs", "shakespeare", "text", "tokens"]
NO_NAMES = [
    "",
    "a b",
    "a\n",
    "a\0b",
    "../up",
    "a/b",
    "a\\b",
    "/etc/passwd",
    "a.txt",
    ".hidden",
    "-dash",
    "é\u202e",
]
NO_NAMES += ["x" * 65, "CON", "nul", "Com1", "LPT9"]


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with no data folder in the environment."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.delenv("GPTKIT_DATA_DIR", raising=False)
    return work


@pytest.fixture
def novel(working_folder: Path) -> Path:
    path = working_folder / "novel.txt"
    path.write_bytes("\ufeffChapter one.\r\nIt was a dark night…\n".encode() * 50)
    return path


Install = Callable[[str, str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a distribution with one dataset, as pip would, for one test."""

    def install_one(distribution: str, name: str, code: str) -> None:
        site, module = tmp_path / "site", distribution.replace("-", "_")
        info = site / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[gptkit.datasets]\n{name} = {module}:Plugin\n")
        (site / f"{module}.py").write_text(code)
        monkeypatch.syspath_prepend(str(site))
        registry.installed.cache_clear()

    yield install_one
    registry.installed.cache_clear()


PLUGIN = """
from gptkit.plugins import Dataset

class Plugin(Dataset):
    summary, source = "of a plugin", "elsewhere"

    def read(self, folders):
        {body}
"""


# Where texts are


def test_folders_are_searched_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert data_folders(None) == DataFolders((Path("data"),), Path("data"))
    monkeypatch.setenv("GPTKIT_DATA_DIR", "/shared")
    assert data_folders(None) == DataFolders((Path("/shared"), Path("data")), Path("data"))
    both = data_folders(Path("mine"))
    assert both == DataFolders((Path("mine"), Path("/shared"), Path("data")), Path("mine"))
    monkeypatch.setenv("GPTKIT_DATA_DIR", "")
    assert data_folders(Path("data")).search == (Path("data"),)


# list


def test_the_list_has_every_registered_dataset_and_the_texts_here(novel: Path) -> None:
    Path("data").mkdir()
    Path("more").mkdir()
    for name in (
        "data/mine.txt",
        "more/mine.txt",
        "more/other.txt",
        "more/harry_potter.txt",
        "more/markov.txt",
    ):
        Path(name).write_text("text")
    Path("data/README.md").write_text("not a text")
    rows = list_datasets(data_folders(Path("more")))
    assert [row.name for row in rows if row.name in BUILT_IN] == BUILT_IN
    by_name = {row.name: row for row in rows}
    assert {name: by_name[name].here for name in BUILT_IN} == {
        "avatar_script": False,
        "harry_potter": True,
        "hf": None,
        "markov": True,
        "python-docs": True,
        "shakespeare": False,
        "text": None,
        "tokens": None,
    }
    assert by_name["shakespeare"].size == 1_115_394
    assert by_name["harry_potter"].size == 4
    assert by_name["shakespeare"].provenance.startswith("gptkit ")
    texts = {row.name: row.source for row in rows if row.name not in BUILT_IN}
    # mine once, where it is found first; markov by its file name, since the name alone is another dataset.
    expected = {"markov.txt": "more/markov.txt", "mine": "more/mine.txt", "other": "more/other.txt"}
    assert texts == {name: str(Path(path)) for name, path in expected.items()}
    for name in texts:
        assert resolve_dataset(PluginTable(type=name), data_folders(Path("more")))[1].type == "text"


def test_a_plugin_that_does_not_load_is_listed_with_the_reason(install: Install) -> None:
    install("broken-texts", "broken", "import no_such_module\n")
    rows = {row.name: row for row in list_datasets(data_folders(None))}
    assert "no_such_module" in rows["broken"].summary
    assert rows["broken"].provenance == "broken-texts 1.0"
    assert rows["python-docs"].here
    with pytest.raises(PluginError, match="broken-texts"):
        resolve_dataset(PluginTable(type="broken"), data_folders(None))


# resolve


def test_a_registered_name_is_resolved_with_every_option() -> None:
    dataset, table = resolve_dataset(
        PluginTable.model_validate({"type": "markov", "order": 1}), data_folders(None)
    )
    assert dataset.options.order == 1
    assert table.options == {"order": 1, "states": 8, "length": 1_000_000, "seed": 0, "concentration": 0.3}
    again, same = resolve_dataset(table, data_folders(None))
    assert (same, again.options) == (table, dataset.options)


@pytest.mark.parametrize("options", [{"order": 9}, {"color": "red"}, {"states": "many"}])
def test_invalid_options_are_a_usage_error(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        resolve_dataset(PluginTable.model_validate({"type": "markov", **options}), data_folders(None))


@pytest.mark.parametrize("name", ["novel.txt", "story", "story.txt"])
def test_a_name_that_is_not_registered_is_a_text(novel: Path, name: str) -> None:
    Path("data").mkdir()
    Path("data/story.txt").write_text("a story")
    dataset, table = resolve_dataset(PluginTable(type=name), data_folders(None))
    assert table.model_dump() == {"type": "text", "path": name, "field": "text", "separator": "\n"}
    assert dataset.read(data_folders(None)) in ("a story", novel.read_bytes().decode()[1:])


def test_a_text_takes_no_options_of_another_dataset(novel: Path) -> None:
    for options in ({"order": 1}, {"path": "novel.txt"}):
        with pytest.raises(UsageError, match=next(iter(options))):
            resolve_dataset(PluginTable.model_validate({"type": "novel.txt", **options}), data_folders(None))


@pytest.mark.parametrize("name", ["text", "hf"])
def test_a_missing_path_is_an_error_with_an_example(name: str) -> None:
    with pytest.raises(UsageError, match=r"path: Field required\. (Name the file itself|In an experiment)"):
        describe_dataset(name, data_folders(None))


@pytest.mark.parametrize("name", ["tiny_shakespeare.txt", "tiny_shakespeare"])
def test_the_file_name_of_a_dataset_names_it(name: str) -> None:
    dataset, table = resolve_dataset(PluginTable(type=name), data_folders(None))
    assert isinstance(dataset, ShakespeareDataset)
    assert table.type == "shakespeare"


def test_an_unknown_name_is_an_error_with_the_searched_places_and_a_remedy() -> None:
    with pytest.raises(DataError) as caught:
        resolve_dataset(PluginTable(type="shakespere"), data_folders(Path("mine")))
    message = str(caught.value)
    assert "did you mean 'shakespeare'?" in message
    for part in ("mine/shakespere.txt", "data/shakespere", "python-docs", "gptkit datasets add NAME FILE"):
        assert str(Path(part)) in message
    assert len(message.splitlines()) <= 3


def test_an_empty_name_is_not_the_working_folder(novel: Path) -> None:
    with pytest.raises(UsageError, match="is empty"):
        describe_dataset("", data_folders(None))


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\udce9"])
def test_an_impossible_name_is_an_error_not_a_crash(name: str) -> None:
    with pytest.raises(GptkitError):
        describe_dataset(name, data_folders(None))


# show


def test_a_text_is_described(novel: Path) -> None:
    text = novel.read_bytes().decode()[1:]
    shown = describe_dataset("novel.txt", data_folders(None))
    assert (shown.characters, shown.bytes) == (len(text), len(text.encode()))
    assert shown.distinct_characters == len(set(text))
    assert shown.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert shown.train_characters == int(len(text) * 0.9)
    assert shown.val_characters == len(text) - shown.train_characters
    assert shown.first_lines[0] == "Chapter one.\r"
    assert shown.source == "novel.txt"
    counts = {count.tokenizer: count for count in shown.tokens}
    assert counts["char"].train == shown.train_characters
    assert counts["char"].vocab_size == len(set(text))
    assert counts["byte"].train + counts["byte"].val == shown.bytes
    assert not any(count.problem for count in shown.tokens)


def test_the_facts_of_a_dataset_are_shown() -> None:
    shown = describe_dataset("markov", data_folders(None), options={"length": 20_000})
    assert dict(shown.facts)["entropy_rate"] == pytest.approx(1.2595, abs=1e-4)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ("raise KeyError('lost')", PluginError, "KeyError"),
        ("return 3", PluginError, "returned int"),
        ("return ''", DataError, "is empty"),
        ("return 'half \\ud800'", DataError, "surrogate"),
    ],
)
def test_a_plugin_that_misbehaves_is_an_error_not_a_crash(
    install: Install, body: str, kind: type[Exception], words: str
) -> None:
    install("odd-texts", "odd", PLUGIN.format(body=body))
    with pytest.raises(kind, match=words):
        describe_dataset("odd", data_folders(None))
    sys.modules.pop("odd_texts", None)


# add


def test_an_added_text_is_found_by_its_name_byte_for_byte(novel: Path) -> None:
    folders = data_folders(None)
    assert add_text("my_novel", novel, folders) == Path("data/my_novel.txt")
    assert Path("data/my_novel.txt").read_bytes() == novel.read_bytes()
    assert os.listdir("data") == ["my_novel.txt"]
    dataset, _ = resolve_dataset(PluginTable(type="my_novel"), folders)
    assert dataset.read(folders) == novel.read_bytes().decode()[1:]


def test_a_text_may_have_a_name_of_any_script(novel: Path) -> None:
    folders = data_folders(None)
    assert add_text("cafe\u0301-шекспир", novel, folders) == Path("data/café-шекспир.txt")
    assert resolve_dataset(PluginTable(type="café-шекспир"), folders)[0]
    with pytest.raises(UsageError, match="it should be letters, digits"):
        add_text("my novel", novel, folders)


def test_adding_does_not_overwrite_without_force(novel: Path) -> None:
    folders = data_folders(Path("mine"))
    add_text("novel", novel, folders)
    novel.write_text("another edition")
    with pytest.raises(UsageError, match="--force"):
        add_text("novel", novel, folders)
    assert Path("mine/novel.txt").read_bytes() != b"another edition"
    add_text("novel", novel, folders, force=True)
    assert Path("mine/novel.txt").read_bytes() == b"another edition"


def test_adding_does_not_write_through_a_link(novel: Path) -> None:
    Path("data").mkdir()
    Path("precious").write_text("precious")
    Path("data/novel.txt").symlink_to(Path("precious").resolve())
    Path("data/nowhere.txt").symlink_to("/no/such/file")
    for name in ("novel", "nowhere"):
        with pytest.raises(UsageError, match="--force"):
            add_text(name, novel, data_folders(None))
        add_text(name, novel, data_folders(None), force=True)
        assert not Path(f"data/{name}.txt").is_symlink()
    assert Path("precious").read_text() == "precious"


@pytest.mark.parametrize("name", NO_NAMES)
def test_an_invalid_name_is_refused(novel: Path, working_folder: Path, name: str) -> None:
    before = sorted(working_folder.rglob("*"))
    with pytest.raises(UsageError, match="cannot be the name"):
        add_text(name, novel, data_folders(None), force=True)
    assert sorted(working_folder.rglob("*")) == before


@pytest.mark.parametrize("name", ["text", "markov", "python-docs", "Markov"])
def test_the_name_of_a_dataset_without_a_file_is_taken(novel: Path, name: str) -> None:
    with pytest.raises(UsageError, match="choose another name"):
        add_text(name, novel, data_folders(None), force=True)


@pytest.mark.parametrize("name", ["harry_potter", "HARRY_POTTER", "avatar_script"])
def test_a_copyrighted_text_gets_its_own_file_name(novel: Path, name: str) -> None:
    assert add_text(name, novel, data_folders(None)) == Path(f"data/{name.lower()}.txt")
    dataset, _ = resolve_dataset(PluginTable(type=name.lower()), data_folders(None))
    assert dataset.is_here(data_folders(None))


@pytest.mark.parametrize("name", ["shakespeare", "tiny_shakespeare"])
def test_only_shakespeare_may_be_called_shakespeare(
    novel: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError) as caught:
        add_text(name, novel, data_folders(None), force=True)
    assert ShakespeareDataset.sha256 in str(caught.value)
    assert not Path("data").exists()
    monkeypatch.setattr(ShakespeareDataset, "sha256", hashlib.sha256(novel.read_bytes()).hexdigest())
    assert add_text(name, novel, data_folders(None)) == Path("data/tiny_shakespeare.txt")


@pytest.mark.parametrize(
    ("data", "words"), [(b"", "is empty"), (b"\xff", "not UTF-8"), (None, "there is no file")]
)
def test_a_file_that_is_not_text_is_not_added(working_folder: Path, data: bytes | None, words: str) -> None:
    path = working_folder / "file"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=words):
        add_text("mine", path, data_folders(None))
    assert not Path("data").exists()


def test_a_text_that_another_one_would_shadow_is_refused(
    novel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTKIT_DATA_DIR", "shared")
    Path("shared").mkdir()
    Path("shared/novel.txt").write_text("found first")
    with pytest.raises(UsageError, match="--data-dir shared"):
        add_text("novel", novel, data_folders(None), force=True)


# fetch


def test_fetching_reports_whether_it_was_here(novel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = novel.read_bytes()
    monkeypatch.setattr(ShakespeareDataset, "sha256", hashlib.sha256(body).hexdigest())
    monkeypatch.setattr("gptkit.data.datasets.shakespeare.download", lambda *args: body)
    folders, path = data_folders(None), Path("data/tiny_shakespeare.txt")
    assert fetch_dataset("shakespeare", folders) == catalogue.FetchedDataset(
        "shakespeare", False, path, len(body)
    )
    assert fetch_dataset("shakespeare", folders, repair=True).was_here
    path.write_bytes(b"damaged")
    with pytest.raises(DataError, match="--repair"):
        fetch_dataset("shakespeare", folders)
    assert not fetch_dataset("shakespeare", folders, repair=True).was_here
    assert path.read_bytes() == body
    assert fetch_dataset("python-docs", folders).path is None
    assert fetch_dataset("novel.txt", folders).was_here
    with pytest.raises(DataError, match="under copyright"):
        fetch_dataset("harry_potter", folders)


# The commands


def run(*arguments: str) -> Result:
    return CliRunner().invoke(datasets_app, list(arguments))


def test_the_list_is_plain_lines_of_any_width_when_piped() -> None:
    folder = Path("a-folder-with-a-long-name" * 5)
    folder.mkdir()
    (folder / "mine.txt").write_text("text")
    lines = run("list", "--data-dir", str(folder)).stdout.splitlines()
    mine = next(line for line in lines if line.startswith("mine "))
    assert str(folder / "mine.txt") in mine
    assert mine.split()[1:3] == ["yes", "4"]
    assert len(lines) == 1 + len(BUILT_IN) + 1


def test_show_add_and_fetch(novel: Path) -> None:
    added = run("add", "mine", str(novel))
    assert added.exit_code == 0
    assert "data" in added.stdout
    shown = run("show", "mine").stdout
    for part in (
        "Chapter one.\\r",
        hashlib.sha256(novel.read_bytes().decode()[1:].encode()).hexdigest(),
        "byte",
    ):
        assert part in shown
    assert "is here" in run("fetch", "python-docs").stdout
    assert isinstance(run("add", "mine", str(novel)).exception, UsageError)
    assert run("add", "mine", str(novel), "--force").exit_code == 0
    assert isinstance(run("show", "nothing").exception, DataError)


@pytest.mark.parametrize("command", ["list", "show", "fetch", "add"])
def test_help_opens_with_an_example(command: str) -> None:
    lines = [line.strip() for line in run(command, "--help").stdout.splitlines() if line.strip()]
    assert lines[1].startswith(f"Example:  gptkit datasets {command}")


def test_control_characters_are_escaped() -> None:
    Path("odd.txt").write_text("\x1b]0;title\x07 [bold]one[/bold] \x9b2J\n")
    shown = run("show", "odd.txt").stdout
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert "\\x1b]0;title\\x07 [bold]one[/bold]" in shown


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "-"), (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB")],
)
def test_sizes_are_readable(size: int | None, text: str) -> None:
    assert size_text(size) == text


def test_listing_imports_nothing_heavy() -> None:
    script = """if True:
        import sys
        from gptkit.cli.commands.datasets import datasets_app
        try:
            datasets_app(["list"])
        except SystemExit as leaving:
            assert not leaving.code
        heavy = {"torch", "rich", "pooch", "requests", "datasets", "huggingface_hub"} & set(sys.modules)
        assert not heavy, heavy
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "python-docs" in done.stdout
