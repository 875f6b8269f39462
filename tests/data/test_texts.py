"""The dataset text: kinds of files, folders, lists, damaged files, memory. No network."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from gptkit.data import readers
from gptkit.data.catalog import add_text, data_folders, describe_dataset, list_datasets, resolve_dataset
from gptkit.data.datasets.text import TextDataset, TextOptions
from gptkit.data.readers import file_pieces, read_files, read_text
from gptkit.errors import DataError, ExperimentError, UsageError
from gptkit.experiment.load import experiment_from_dict
from gptkit.experiment.schema import PluginTable
from gptkit.plugins import DataFolders, registry
from tests.support import Command, small_text

NOWHERE = DataFolders(search=())


# The reader


def test_text_is_kept_exactly_but_for_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n\xef\xbb\xbf\x00\xf0\x9f\x98\x80")
    assert read_text(path) == "one\r\ntwo\rthree\n\ufeff\x00\U0001f600"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"ol\xe9", "byte 0xe9 at offset 2"),
        (b"\xef\xbb\xbfol\xe9!", "byte 0xe9 at offset 5"),
        (b"surrogate \xed\xa0\x80", "byte 0xed at offset 10"),
        ("half".encode("utf-16"), "UTF-16"),
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
    ],
)
def test_what_is_not_text_is_refused_with_its_place(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_text(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 100])
def test_pieces_make_the_text_that_is_read(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the chunks of a file end, inside a character too."""
    texts = {
        "a.txt": b"\xef\xbb\xbfa\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\r\n\xef\xbb\xbfb",
        "b.txt.gz": gzip.compress("naïve €".encode()),
        "c.jsonl": b'{"text": "one"}\n\n{"text": "zw\xc3\xb6lf"}\n',
        "d.csv": b"text,n\none,1\ntwo,2\n",
    }
    for name, data in texts.items():
        (tmp_path / name).write_bytes(data)
    paths = [tmp_path / name for name in texts]
    monkeypatch.setattr(readers, "_CHUNK", chunk)
    for some in (paths, *([path] for path in paths)):
        assert "".join(file_pieces(some, separator="--")) == read_files(some, separator="--")


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize(
    "data", [b"ol\xe9", b"\xef\xbb\xbfol\xe9!", b"sur \xed\xa0\x80", b"\x80", b"\xff\xfeh\0", b""]
)
def test_pieces_of_what_is_not_text_are_refused_alike(
    data: bytes, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    with pytest.raises(DataError) as whole:
        read_files([path])
    monkeypatch.setattr(readers, "_CHUNK", chunk)
    with pytest.raises(DataError) as in_pieces:
        list(file_pieces([path]))
    assert str(in_pieces.value).partition("\n")[0] == str(whole.value).partition("\n")[0]


def test_a_folder_cannot_be_read_as_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_text(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_one_huge_line_takes_little_more_than_twice_its_size(tmp_path: Path) -> None:
    path, size = tmp_path / "line.txt", 100_000_000
    with open(path, "wb") as file:
        file.write(b"\xef\xbb\xbf")
        for _ in range(100):
            file.write(b"a" * (size // 100))
    script = """if True:
        import re, sys
        from pathlib import Path
        from gptkit.data.readers import read_text
        peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        before = peak()
        assert len(read_text(Path(sys.argv[1]))) == int(sys.argv[2])
        print(peak() - before)
    """
    run = [sys.executable, "-c", script, str(path), str(size)]
    used = int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    assert used < 2.5 * size


# The user's own texts


def text_of(path: str | list[str], folders: DataFolders = NOWHERE, **options: str) -> str:
    return TextDataset(TextOptions.model_validate({"path": path, **options})).read(folders)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataFolders:
    """A working folder with texts in it, in data/ and in more/, and in a folder of texts."""
    monkeypatch.chdir(tmp_path)
    contents = {
        "here.txt": "as given",
        "data/here.txt": "in data",
        "data/novel.txt": "novel in data",
        "more/novel.txt": "novel in more",
        "more/poem.txt": "poem in more",
        "plays/b.txt": "b",
        "plays/a.txt": "a",
        "plays/acts/c.txt": "c",
        "plays/cover.html": "not a text",
        "data/odes/one.txt": "ode",
        "novel/cover.html": "a folder without texts",
    }
    for name, text in contents.items():
        Path(name).parent.mkdir(exist_ok=True, parents=True)
        Path(name).write_text(text)
    return DataFolders(search=(Path("data"), Path("more")), downloads=Path("data"))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("here.txt", "as given"),
        ("data/here.txt", "in data"),
        ("here", "in data"),
        ("novel.txt", "novel in data"),
        ("novel", "novel in data"),  # not the folder of that name, which has no texts
        ("poem", "poem in more"),
        ("plays", "a\nc\nb"),
        ("plays/", "a\nc\nb"),
        ("odes", "ode"),
        ("plays/*.txt", "a\nb"),
        ("plays/**/*.txt", "a\nc\nb"),
        ("od*/*.txt", "ode"),
    ],
)
def test_a_text_is_found_as_given_then_in_the_folders(library: DataFolders, path: str, text: str) -> None:
    dataset = TextDataset(TextOptions(path=path))
    assert dataset.is_here(library)
    assert dataset.read(library) == text
    size = dataset.size(library)
    assert size is not None
    assert size in (len(text), len(text.replace("\n", "")))


def test_an_absolute_path_is_as_given(library: DataFolders, tmp_path: Path) -> None:
    assert text_of(str(tmp_path / "more" / "poem.txt"), library) == "poem in more"


@pytest.mark.parametrize(
    "path", ["missing", "../missing", "/no/such/file", "x" * 300, "nul\0", "*.nothing", "["]
)
def test_a_missing_text_is_an_error_with_the_searched_places(library: DataFolders, path: str) -> None:
    dataset = TextDataset(TextOptions(path=path))
    assert not dataset.is_here(library)
    with pytest.raises(DataError) as caught:
        dataset.read(library)
    if path == "missing":
        for place in ("data/missing", "data/missing.txt", "more/missing", "more/missing.txt"):
            assert str(Path(place)) in str(caught.value)


def test_dots_do_not_lead_out_of_the_data_folders(library: DataFolders, tmp_path: Path) -> None:
    inside = DataFolders(search=(tmp_path / "plays" / "acts",))
    assert TextDataset(TextOptions(path="plays/../here.txt")).is_here(inside)
    assert not TextDataset(TextOptions(path="../a.txt")).is_here(inside)


def test_an_empty_file_is_an_error_where_it_is_named_and_passed_over_in_a_folder(
    library: DataFolders,
) -> None:
    Path("plays/d.txt").touch()
    with pytest.raises(DataError, match=r"d\.txt is empty"):
        text_of("plays/d.txt", library)
    for path in ("plays", "plays/*.txt"):
        dataset = TextDataset(TextOptions(path=path))
        assert "b" in dataset.read(library)
        assert "empty: 1 (plays/d.txt)" in str(dataset.facts()["passed_over"])


# Kinds of files


def put(path: str, data: str | bytes) -> Path:
    """Writes a file, compressed if its name ends with .gz."""
    raw = data.encode() if isinstance(data, str) else data
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(gzip.compress(raw) if path.endswith(".gz") else raw)
    return Path(path)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPTKIT_DATA_DIR", raising=False)
    return tmp_path


RECORDS = (
    '{"text": "one"}\n\n  \r\n{"id": 3, "text": "two\\nlines \\u00e9"}\r\n{"text": ""}\n{"text": "drei…"}'
)
TABLE = 'id,text\r\n1,one\r\n2,"two\r\nlines, ""quoted"""\r\n\r\n3,\r\n4,drei…'


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.txt", "\ufeffas it\r\nis\r", "as it\r\nis\r"),
        ("a.md", "# Title\n", "# Title\n"),
        ("a.log", "any other ending", "any other ending"),
        ("a", '{"text": "no ending"}', '{"text": "no ending"}'),
        ("a.jsonl", RECORDS, "one\ntwo\nlines é\n\ndrei…"),
        ("A.JSONL", "\ufeff" + RECORDS, "one\ntwo\nlines é\n\ndrei…"),
        ("a.csv", TABLE, 'one\ntwo\r\nlines, "quoted"\n\ndrei…'),
        ("a.csv", "\ufeff" + TABLE.replace("id,", ","), 'one\ntwo\r\nlines, "quoted"\n\ndrei…'),
        ("a.csv", 'text;label\r\n"one; two";0\r\nthree, four;1\r\n', "one; two\nthree, four"),
        ("a.csv", "\n\ufeffid\ttext\n1\tone\n".replace("\n\ufeff", "\ufeff\n"), "one"),
        ("a.csv", "label|text\n0|one\n", "one"),
        ("a.csv", "text,a;text\none;,two\n", "one;"),  # commas where they make the column
    ],
)
def test_the_ending_decides_how_a_file_is_read(
    here: Path, name: str, content: str, text: str, packed: str
) -> None:
    put(name + packed, content)
    assert text_of(name + packed) == text


def test_documents_are_joined_with_the_separator_and_nothing_else(here: Path) -> None:
    put("b.jsonl", '{"text": "b1", "body": "B1"}\n{"text": "b2", "body": "B2"}\n')
    put("a.txt", "a\n")
    put("c.csv.gz", "body,text\nC1,c1\n")
    paths = ["b.jsonl", "a.txt", "c.csv.gz"]
    assert text_of(paths) == "b1\nb2\na\n\nc1"
    assert text_of(paths, separator="<|>", field="body") == "B1<|>B2<|>a\n<|>C1"
    assert text_of(paths, separator="") == "b1b2a\nc1"


def test_a_list_is_read_in_its_order_and_no_file_twice(here: Path) -> None:
    for name in ("one.txt", "b/1.jsonl.gz", "b/2.jsonl.gz", "b/deep/3.txt"):
        put(name, f'{{"text": "{name}"}}' if "json" in name else name)
    assert text_of(["one.txt", "b/*.jsonl.gz"]) == "one.txt\nb/1.jsonl.gz\nb/2.jsonl.gz"
    assert text_of(["b/2.jsonl.gz", "b", "one.txt"]) == "b/2.jsonl.gz\nb/1.jsonl.gz\nb/deep/3.txt\none.txt"
    dataset = TextDataset(TextOptions(path=["one.txt", "missing.txt"]))
    assert not dataset.is_here(NOWHERE)
    with pytest.raises(DataError, match=r"'missing\.txt'"):
        dataset.read(NOWHERE)


def test_a_folder_is_all_texts_in_it_in_order_and_nothing_hidden(here: Path) -> None:
    plain = ["in/b.txt", "in/a/z.md", "in/c.txt.gz", "in/noending.gz"]
    left_out = ["in/.hidden.txt", "in/.git/x.txt", "in/x.html", "in/x.tar.gz", "in/x.json", "in/noending"]
    for name in [*plain, *left_out]:
        put(name, f"<{name}>")
    put("in/a.jsonl", '{"text": "<in/a.jsonl>"}')
    put("in/a.csv.gz", "text\n<in/a.csv.gz>\n")
    expected = sorted([*plain, "in/a.jsonl", "in/a.csv.gz"])
    assert text_of("in").split("\n") == [f"<{name}>" for name in expected]


def test_the_text_of_a_run_recorded_before_other_kinds_were_read_is_the_same(here: Path) -> None:
    """The hashes are those of commit 1b6b351, which read nothing but plain files and folders of .txt."""
    put("texts/b.txt", b"\xef\xbb\xbfFirst, with a mark.\r\nAnd a line.\n")
    put("texts/a.txt", b"Alone, without an end")
    put("texts/deep/c.txt", "Grüße …\n\n".encode())
    put("texts/more/a.txt", b"the same\rold\x00bytes\n")
    recorded = {
        "texts": "7db3ed8c95c772fbcdbbf7403e7c1f0773d0807d13f596eed7aa1fd762012fa4",
        "texts/b.txt": "3a4a33fbb71a1edc285759bf5694e3faf9768de55030a4142f1f16feb112ac15",
        "texts/*.txt": "dcd7925f909773af31410e619064bf57d7b7f7199b1bab7df75963dec0f13ad0",
    }
    assert {path: hashlib.sha256(text_of(path).encode()).hexdigest() for path in recorded} == recorded


# Damaged files


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"text": "x"}\n\n{"text": \n', "a.jsonl, line 3 is not JSON"),
        ("a.jsonl", '{"text": "x"}\r{"text": "y"}', "a.jsonl, line 1 is not JSON: Extra data"),
        ("a.jsonl", '["text"]\n', "a.jsonl, line 1 is a list, not an object"),
        ("a.jsonl", '"text"\n', "line 1 is a string, not an object"),
        ("a.jsonl", '{"text": "x"}\n' + "[" * 100_000, "a.jsonl, line 2 is not usable JSON: it is nested"),
        ("a.jsonl", '{"text": ' + '{"a":' * 100_000, "a.jsonl, line 1 is not usable JSON: it is nested"),
        ("a.jsonl", '{"body": "x", "id": 1}\n', "line 1 has no field 'text'. Its fields: 'body', 'id'"),
        ("a.jsonl", '{"body": "x"}\n', 'field = "body"'),
        ("a.jsonl", '{"texts": "x", "id": 1}\n', "did you mean 'texts'?"),
        ("a.jsonl", "{}\n", "Its fields: none"),
        ("a.jsonl", '{"text": "x"}\n{"text": null}\n', "a.jsonl, line 2: the field 'text' is null"),
        ("a.jsonl", '{"text": 3}\n', "the field 'text' is a number, not a string"),
        ("a.jsonl", f'{{"text": {"9" * 5000}}}\n', "the field 'text' is a number, not a string"),
        ("a.jsonl", '{"text": true}\n', "the field 'text' is true, not a string"),
        ("a.jsonl", '{"text": ["x"]}\n', "the field 'text' is a list, not a string"),
        ("a.jsonl", '{"text": "half \\ud800"}\n', "a.jsonl, line 1 has a lone surrogate"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xe9"}\n', "line 2, is not UTF-8: byte 0xe9 at offset 24"),
        ("a.jsonl", '{"text": "x"}\n'.encode("utf-16"), "UTF-16"),
        ("a.jsonl", "\n \n", "a.jsonl is empty"),
        ("a.jsonl", '{"text": ""}\n', "a.jsonl is empty"),
        ("a.csv", "", "a.csv is empty"),
        ("a.csv", "text\n", "a.csv is empty"),
        ("a.csv", "id;body\n1;x\n", "a.csv, line 1 has no column 'text'. Its columns: 'id', 'body'"),
        ("a.csv", "text;label\none;0\ntwo, or so\n", "a.csv, line 3 has 1 columns where the header has 2"),
        (
            "a.csv",
            "text;label\none;two;0\n",
            'A field with a semicolon, quote or line end must be in "quotes"',
        ),
        ("a.csv", "text:label\none:0\n", "a.csv, line 1 has one column only, 'text:label'.\nSeparate the"),
        ("a.csv", "\nid,body\n1,x\n", "a.csv, line 2 has no column 'text'. Its columns: 'id', 'body'"),
        ("a.csv", 'id,text\n1,"x\ny"\n2,x,y\n', "a.csv, line 4 has 3 columns where the header has 2"),
        ("a.csv", "id,text\n1\n", "a.csv, line 2 has 1 columns"),
        ("a.csv", 'text\nx\n"y\nz\n', "a.csv, line 3 is not CSV"),
        ("a.csv", b"text\nx\n\xff\n", "a.csv, line 3, is not UTF-8: byte 0xff at offset 7"),
        ("a.txt.gz", b"abc\xff", "a.txt.gz is not UTF-8: byte 0xff at offset 3"),
        ("a.txt.gz", b"", "a.txt.gz is empty"),
    ],
)
def test_a_damaged_file_is_an_error_with_file_and_line(
    here: Path, name: str, content: str | bytes, words: str
) -> None:
    for kind in {name, f"{name.removesuffix('.gz')}.gz"}:
        put(kind, content)
        with pytest.raises(DataError) as caught:
            text_of(kind)
        assert words.replace(name, kind) in str(caught.value)
        assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.csv.gz"])
def test_a_damaged_gzip_is_an_error(here: Path, name: str) -> None:
    whole = put(name, 'text\n"one"\n' * 1000 if "csv" in name else '{"text": "one"}\n' * 1000).read_bytes()
    damaged = bytearray(whole)
    damaged[-8] ^= 1  # the checksum
    for data in (whole[:-20], whole[:5], b"no gzip at all", bytes(damaged), whole + b"more"):
        Path(name).write_bytes(data)
        with pytest.raises(DataError, match=rf"{name} is damaged or not a gzip file: "):
            text_of(name)


def test_several_members_of_a_gzip_are_one_text(here: Path) -> None:
    Path("a.txt.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two"))
    assert text_of("a.txt.gz") == "one two"


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.csv.gz"])
def test_a_gzip_bomb_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    Path(name).write_bytes(gzip.compress(b" " * 30_000_000))
    monkeypatch.setattr(readers, "MAX_UNPACKED", 5_000_000)
    with pytest.raises(DataError, match=rf"{name} unpacks to more than 0\.0 GB"):
        text_of(name)
    put("b.txt.gz", "b" * 3_000_000)
    put("c.txt.gz", "c" * 3_000_000)
    assert len(text_of("b.txt.gz")) == 3_000_000
    with pytest.raises(DataError, match=r"c\.txt\.gz unpacks"):  # all of a dataset together
        text_of(["b.txt.gz", "c.txt.gz"])


def test_unusual_json_is_read(here: Path) -> None:
    put("a.jsonl", f'{{"a": NaN, "b": -Infinity, "n": {"9" * 5000}, "e": 1e999, "text": "x", "text": "y"}}')
    assert text_of("a.jsonl") == "y"


def test_a_field_of_a_csv_may_be_of_any_length(here: Path) -> None:
    before = csv.field_size_limit()
    put("a.csv", f'text\n"{"x" * 1_000_000}"\n')
    assert len(text_of("a.csv")) == 1_000_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("count", [4_999, 5_000, 5_001, 12_345])
def test_documents_are_joined_in_order_however_many(here: Path, count: int) -> None:
    put("a.jsonl", "".join(f'{{"text": "{number}"}}\n' for number in range(count)))
    assert text_of("a.jsonl", separator="|") == "|".join(map(str, range(count)))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
@pytest.mark.parametrize("kind", ["one.txt.gz", "one.jsonl.gz", "many.jsonl.gz", "many.csv.gz", "two"])
def test_reading_takes_about_twice_the_text(here: Path, kind: str) -> None:
    size = 30_000_000
    if kind == "two":
        for name in ("two/a.txt", "two/b.txt"):
            put(name, b"a" * (size // 2))
    elif kind.startswith("one"):
        data = b"a" * size
        Path(kind).write_bytes(gzip.compress(b'{"text": "%b"}' % data if "json" in kind else data, 1))
    else:
        record = b'{"text": "%b"}\n' if "json" in kind else b"%b\n"
        head = b"" if "json" in kind else b"text\n"
        Path(kind).write_bytes(gzip.compress(head + record % (b"a" * 60) * (size // 60), 1))
    script = """if True:
        import re, sys
        from pathlib import Path
        from gptkit.plugins import DataFolders
        from gptkit.data.datasets.text import TextDataset, TextOptions
        peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        before = peak()
        assert len(TextDataset(TextOptions(path=sys.argv[1])).read(DataFolders())) >= int(sys.argv[2])
        print(peak() - before)
    """
    run = [sys.executable, "-c", script, kind, str(size)]
    path = os.pathsep.join([str(Path(readers.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    used = int(subprocess.run(run, check=True, capture_output=True, text=True, env=environment).stdout)
    assert used < 2.6 * size


# By name


def test_the_size_is_known_if_it_needs_no_reading(here: Path) -> None:
    put("in/a.txt", "four")
    put("in/b.md", "five!")
    assert TextDataset(TextOptions(path=["in", "in/a.txt"])).size(NOWHERE) == 9
    for name in ("a.jsonl", "a.csv", "a.txt.gz"):
        put(name, "text")
        assert TextDataset(TextOptions(path=name)).size(NOWHERE) is None
        assert TextDataset(TextOptions(path=["in", name])).size(NOWHERE) is None
    assert TextDataset(TextOptions(path="missing")).size(NOWHERE) is None


def test_the_example_of_the_options_is_a_text(here: Path) -> None:
    cls = registry.load(registry.DATASETS, "text")
    assert len(cls(cls.Options.example(here)).read(NOWHERE)) > 1000
    assert os.listdir(here) == ["example.txt"]


@pytest.mark.parametrize("path", ["", [], [""], ["a.txt", 3], 3, {"a": "b"}])
def test_an_invalid_path_is_refused(path: object) -> None:
    with pytest.raises(ValidationError):
        TextOptions.model_validate({"path": path})
    with pytest.raises(ExperimentError, match=r"data\.dataset\.path") as caught:
        experiment_from_dict({"data": {"dataset": {"type": "text", "path": path}}})
    assert "list[" not in str(caught.value)


@pytest.mark.parametrize("ending", readers.ENDINGS)
def test_an_added_text_keeps_its_kind_and_is_found_by_its_name(here: Path, ending: str) -> None:
    content = {".jsonl": '{"text": "mine"}\n', ".csv": "text\nmine\n"}.get(ending.removesuffix(".gz"), "mine")
    source, folders = put(f"elsewhere/corpus{ending}", content), data_folders(None)
    assert add_text("mine", source, folders) == Path(f"data/mine{ending}")
    assert Path(f"data/mine{ending}").read_bytes() == source.read_bytes()
    dataset, table = resolve_dataset(PluginTable(type="mine"), folders)
    assert (dataset.read(folders), table.type) == ("mine", "text")
    assert "mine" in [row.name for row in list_datasets(folders)]


@pytest.mark.parametrize(
    ("name", "ending"), [("a.log", ".txt"), ("a", ".txt"), ("a.gz", ".txt.gz"), ("A.CSV", ".csv")]
)
def test_an_added_text_gets_the_ending_of_what_it_is(here: Path, name: str, ending: str) -> None:
    assert add_text("mine", put(name, "text\nmine\n"), data_folders(None)) == Path(f"data/mine{ending}")


def test_a_text_that_cannot_be_read_is_not_added(here: Path) -> None:
    source, folders = put("corpus.jsonl", '{"body": "mine"}\n'), data_folders(None)
    with pytest.raises(DataError, match='field = "body"'):
        add_text("mine", source, folders)
    assert not Path("data").exists()
    add_text("mine", source, folders, field="body")
    table = PluginTable.model_validate({"type": "mine", "field": "body"})
    assert resolve_dataset(table, folders)[0].read(folders) == "mine"
    with pytest.raises(UsageError, match="is a plain text"):
        add_text("harry_potter", source, folders, field="body")


def test_a_name_means_one_text(here: Path) -> None:
    folders = data_folders(None)
    add_text("mine", put("a.jsonl", '{"text": "a"}'), folders)
    for force in (False, True):
        with pytest.raises(UsageError, match=r"mine\.jsonl has that name already"):
            add_text("mine", put("a.txt", "a"), folders, force=force)
    put("more/x.txt", "x")
    both = DataFolders(search=(Path("data"), Path("more")), downloads=Path("more"))
    with pytest.raises(UsageError, match=r"mine\.jsonl would be found first"):
        add_text("mine", put("a.txt", "a"), both)


def test_the_list_shows_texts_of_every_kind_by_the_name_that_finds_them(here: Path) -> None:
    names = [
        "a.txt",
        "a.jsonl",
        "b.csv.gz",
        "c.md",
        "d.gz",
        "markov.jsonl",
        "README.md",
        ".e.txt",
        "f.tar.gz",
    ]
    for name in [*names, "g.html"]:
        put(f"data/{name}", f"<{name}>")
    put("more/b.txt", "x")
    folders = DataFolders(search=(Path("data"), Path("more")), downloads=Path("data"))
    rows = [row for row in list_datasets(folders) if row.provenance == "your text"]
    expected = {
        **{"a": "data/a.txt", "a.jsonl": "data/a.jsonl", "b": "data/b.csv.gz", "c": "data/c.md"},
        **{"d": "data/d.gz", "markov.jsonl": "data/markov.jsonl", "b.txt": "more/b.txt"},
    }
    assert {row.name: row.source for row in rows} == {key: str(Path(at)) for key, at in expected.items()}
    assert {row.name: row.size for row in rows if row.size} == {"a": 7, "c": 6, "b.txt": 1}
    for row in rows:
        dataset = resolve_dataset(PluginTable(type=row.name), folders)[0]
        assert isinstance(dataset, TextDataset)
        assert list(map(str, dataset.find(folders).files)) == [row.source]


# Named without a table


def test_a_text_by_name_may_have_options(here: Path) -> None:
    put("data/corpus.jsonl", '{"body": "one"}\n{"body": "two"}\n')
    folders = data_folders(None)
    for name in ("data/corpus.jsonl", "corpus.jsonl", "corpus"):
        table = {"type": name, "field": "body", "separator": " "}
        experiment = experiment_from_dict({"data": {"dataset": table}})
        dataset, resolved = resolve_dataset(experiment.data.dataset, folders)
        assert dataset.read(folders) == "one two"
        assert resolved.model_dump() == {**table, "type": "text", "path": name}
    assert describe_dataset("corpus", folders, options={"field": "body"}).characters == 7


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"type": "corpus.jsonl", "feild": "body"}, "data.dataset.feild: unknown key; did you mean 'field'?"),
        ({"type": "markof", "order": 3}, "no dataset 'markof' is installed"),
        ({"type": "corpus.jsonl", "path": "x"}, "is a path already"),
        ({"type": "corpus.jsonl", "field": 3}, "data.dataset.field = 3: should be a string"),
    ],
)
def test_unknown_options_are_refused_before_the_text_is_searched(
    table: dict[str, object], words: str
) -> None:
    with pytest.raises(ExperimentError) as caught:
        experiment_from_dict({"data": {"dataset": table}})
    assert words in str(caught.value)


# The command line


@pytest.mark.slow
def test_a_run_on_json_lines_records_what_it_read(tiny_experiment: Path, gptkit_command: Command) -> None:
    lines = "".join(json.dumps({"body": line, "id": 1}) + "\n" for line in small_text().splitlines())
    put("corpus.jsonl.gz", lines)
    refused = gptkit_command("train", tiny_experiment, "--dataset", "corpus.jsonl.gz")
    assert (refused.code, refused.out) == (4, "")
    assert "Its fields: 'body', 'id'" in refused.err
    field = ("--set", "data.dataset.field=body")
    done = gptkit_command("train", tiny_experiment, "--dataset", "corpus.jsonl.gz", *field, "--quiet")
    assert done.code == 0, done.err
    folder = Path(done.out.strip())
    record = json.loads((folder / "run.json").read_text())["dataset"]
    assert record["sha256"] == hashlib.sha256(small_text().rstrip("\n").encode()).hexdigest()
    assert record["title"] == "corpus.jsonl.gz"
    again = gptkit_command("train", folder / "experiment.toml", "--quiet")
    assert again.code == 0, again.err
    weights = [next(run.rglob("step-*20/model.safetensors")) for run in (folder, Path(again.out.strip()))]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_list_of_files_is_an_experiments_dataset(workspace: Path, gptkit_command: Command) -> None:
    put("b/1.jsonl.gz", json.dumps({"content": small_text(400)}))
    put("a.txt", small_text(400))
    Path("list.toml").write_text(
        'data = { dataset = { type = "text", path = ["a.txt", "b/*.jsonl.gz"], field = "content" } }\n'
        "model = { context_length = 16, n_embd = 32, n_layer = 1, n_head = 2 }\n"
        'training = { max_steps = 2, batch_size = 2, backend = "cpu", threads = 1 }\n'
    )
    done = gptkit_command("train", "list.toml", "--no-save")
    assert done.code == 0, done.err
    folder = next(Path("runs").glob("list*"))
    record = json.loads((folder / "run.json").read_text())["dataset"]
    assert record["title"] == "a.txt and 1 more"
    assert record["characters"] == 2 * len(small_text(400)) + 1
    assert 'path = [\n    "a.txt",\n    "b/*.jsonl.gz",\n]' in (folder / "experiment.toml").read_text()


def test_datasets_show_and_add_take_the_field(workspace: Path, gptkit_command: Command) -> None:
    put("corpus.jsonl", json.dumps({"the body": small_text()}))
    assert "the body" in gptkit_command("datasets", "show", "corpus.jsonl").err
    shown = gptkit_command("datasets", "show", "corpus.jsonl", "--field", "the body")
    assert hashlib.sha256(small_text().encode()).hexdigest() in shown.out
    added = gptkit_command("datasets", "add", "mine2", "corpus.jsonl", "--field", "the body")
    assert "--dataset mine2 --set 'data.dataset.field=the body'\n" in added.out
