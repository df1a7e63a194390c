import os
import sysconfig

import pytest

from modbrick.data.preparation.formats.kinds import text_extensions
from modbrick.data.preparation.inputs import STANDARD_LIBRARY, Input
from modbrick.data.preparation.sources import list_sources
from modbrick.errors import InputError


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in (
        "books/one.txt",
        "books/deep/two.md",
        "books/.hidden/no.txt",
        "books/.no.txt",
        "books/picture.png",
        "code/a.py",
        "code/b.rs",
        "web.jsonl.zst",
        "table.parquet",
        "Makefile",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*inputs, **options):
    listing = list_sources([Input.parse(text) for text in inputs], **options)
    return [(s.domain, s.name, s.kind) for s in listing.sources]


def test_directories_globs_and_files(tree):
    assert found("books", "code", "web.jsonl.zst", "table.parquet") == [
        ("books", "deep/two.md", "text"),
        ("books", "one.txt", "text"),
        ("code", "a.py", "text"),
        ("code", "b.rs", "text"),
        ("table", "table.parquet", "parquet"),
        ("web", "web.jsonl.zst", "json_lines"),
    ]
    assert found("code/*.py") == [("code", "a.py", "text")]
    assert found("books/**/*.md") == [("books", "deep/two.md", "text")]
    assert found("Makefile", domain="make") == [("make", "Makefile", "text")]
    assert found("x=books", "x=code/a.py") == [
        ("x", "code/a.py", "text"),
        ("x", "deep/two.md", "text"),
        ("x", "one.txt", "text"),
    ]
    assert found("books", extensions=[".png"]) == [("books", "picture.png", "text")]


def test_paths_of_the_home_directory_and_more_extensions(tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree))
    assert found("~/books", "x=~/code") == [
        ("books", "deep/two.md", "text"),
        ("books", "one.txt", "text"),
        ("x", "a.py", "text"),
        ("x", "b.rs", "text"),
    ]
    extensions = text_extensions(["png", ".RS"])
    assert extensions[-2:] == (".png", ".rs")
    assert ("books", "picture.png", "text") in found("books", extensions=extensions)


def test_a_file_that_is_found_twice_is_read_once(tree):
    assert found("d=code", "d=code/*.py", "d=code/a.py") == found("d=code")


def test_other_files_are_counted(tree):
    assert list_sources([Input("books")]).left_aside == {".png": 1}


def test_the_order_of_inputs_does_not_matter(tree):
    assert found("books", "code") == found("code", "books")


def test_the_same_files_elsewhere_have_the_same_names(tree):
    os.rename("books", "moved")
    assert [name for _, name, _ in found("moved")] == ["deep/two.md", "one.txt"]


def test_a_path_may_contain_an_equals_sign(tree):
    (tree / "a=b").mkdir()
    (tree / "a=b" / "c.txt").write_text("x")
    assert found("a=b") == [("a_b", "c.txt", "text")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("boks", "no such file or directory; did you mean 'books'"),
        ("code/*.xyz", "no file matches"),
        ("bad name=books", "no name for a domain"),
        ("name=", "no path after the domain"),
        ("empty", "holds no file to read .found: no file at all"),
        ("pictures", r"holds no file to read .found: \.png"),
    ],
)
def test_errors_name_the_remedy(tree, text, message):
    (tree / "empty").mkdir()
    (tree / "pictures").mkdir()
    (tree / "pictures" / "a.png").write_text("x")
    with pytest.raises(InputError, match=message):
        found(text)


@pytest.mark.parametrize("domain", ["code", None])
def test_a_file_that_a_held_out_input_names_is_only_held_out(tree, domain):
    os.symlink(tree / "code" / "a.py", tree / "books" / "linked.py")
    inputs = [Input("code"), Input("books"), Input("code/a.py", domain, "held_out")]
    listing = list_sources(inputs)
    splits = {s.name: s.split for s in listing.sources}
    assert splits.pop("code/a.py") == "held_out"
    assert splits == dict.fromkeys(("b.rs", "deep/two.md", "one.txt"))
    assert listing.held_out == 1


def test_the_standard_library_without_tests_tables_and_packages():
    sources = list_sources([Input(STANDARD_LIBRARY)]).sources
    names = {source.name for source in sources}
    assert {"os.py", "json/decoder.py", "asyncio/tasks.py"} <= names
    assert all(name.endswith(".py") for name in names)
    parts = {part for name in names for part in name.split("/")[:-1]}
    assert not parts & {"test", "tests", "encodings", "pydoc_data", "site-packages"}
    root = sysconfig.get_paths()["stdlib"]
    assert all(source.path.startswith(root) for source in sources)
    assert sum(source.size for source in sources) > 5_000_000
