"""What lies below a directory: every file once, and a word on whatever is not read."""

from __future__ import annotations

import os
import socket

import pytest

from modbrick.data.preparation.formats.kinds import text_extensions
from modbrick.data.preparation.inputs import Input
from modbrick.data.preparation.sources import list_sources
from modbrick.errors import InputError


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in (
        "docs/a.txt",
        "docs/deep/b.txt",
        "docs/deep/README",
        "docs/node_modules/c.js",
        "docs/d.min.js",
        "elsewhere/e.txt",
        "elsewhere/within/f.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listing(*inputs, **options):
    return list_sources([Input(text) for text in inputs], **options)


def names(*inputs, **options):
    return [source.name for source in listing(*inputs, **options).sources]


ALL = ["a.txt", "d.min.js", "deep/b.txt", "node_modules/c.js"]


def test_links_to_directories_are_followed_once(tree):
    os.symlink("../elsewhere", "docs/linked")
    os.symlink("../elsewhere/within", "docs/again")
    os.symlink("deep", "docs/within")
    os.symlink("../../docs", "docs/deep/around")
    os.symlink("..", "docs/up")
    os.symlink("me", "docs/me.txt")
    os.symlink("me.txt", "docs/me")
    found = listing("docs")
    assert [s.name for s in found.sources if s.problem is None] == [
        "a.txt",
        "again/f.txt",
        "d.min.js",
        "deep/b.txt",
        "linked/e.txt",
        "node_modules/c.js",
    ]
    assert [(s.name, s.problem) for s in found.sources if s.problem] == [
        ("me.txt", "unreadable (Too many levels of symbolic links)")
    ]
    assert found.passed_over == {
        "docs/deep/around": "a link to a directory around it",
        "docs/up": "a link to a directory around it",
    }
    assert names("docs/**") == [source.name for source in found.sources]
    assert names("docs/**/*.txt") == [n for n in names("docs") if n.endswith(".txt")]


def test_what_cannot_be_read_is_found_with_its_problem(tree, monkeypatch):
    pipes = ("pipe.txt", "pipe.jsonl", "pipe.jsonl.gz", "pipe.parquet")
    for name in pipes:
        os.mkfifo(f"docs/{name}")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("docs/socket.txt")
    os.symlink("nowhere", "docs/gone.txt")

    def refusing(function):
        def refuse(path):
            if str(path).endswith("deep"):
                raise PermissionError(13, "Permission denied")
            return function(path)

        return refuse

    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    monkeypatch.setattr(os, "listdir", refusing(os.listdir))
    pipe = "a pipe, a socket or a device; write it to a file first"
    expected = {
        "deep": "unreadable directory (Permission denied)",
        "gone.txt": "unreadable (No such file or directory)",
        "socket.txt": pipe,
        **dict.fromkeys(pipes, pipe),
    }
    of_text = {name: expected[name] for name in expected if not name.startswith("pipe.")}
    of_text["pipe.txt"] = pipe
    for path in ("docs", "docs/**", "docs/**/*.txt", "docs/*"):
        problems = {s.name: s.problem for s in listing(path).sources if s.problem}
        assert problems == (of_text if path.endswith(".txt") else expected)
    found = {s.name: s.problem for s in listing("docs/*.txt", "docs/*/*.txt").sources if s.problem}
    assert found == of_text
    with pytest.raises(InputError, match=r"^docs/deep: unreadable directory .Permission denied"):
        listing("docs/deep")
    with pytest.raises(InputError, match=r"^docs/pipe.txt: a pipe"):
        listing("docs/pipe.txt")


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ("*.min.js", ["a.txt", "deep/b.txt", "node_modules/c.js"]),
        ("node_modules", ["a.txt", "d.min.js", "deep/b.txt"]),
        ("node_modules/", ["a.txt", "d.min.js", "deep/b.txt"]),
        ("deep/b.txt", ["a.txt", "d.min.js", "node_modules/c.js"]),
        ("docs/deep", ["a.txt", "d.min.js", "node_modules/c.js"]),
        ("./docs/deep/*", ["a.txt", "d.min.js", "node_modules/c.js"]),
        ("*/b.txt", ["a.txt", "d.min.js", "node_modules/c.js"]),
        ("[ab].txt", ["d.min.js", "node_modules/c.js"]),
        ("docs", ALL),  # the input itself is wanted
        ("B.txt", ALL),
    ],
)
def test_exclusions(tree, exclude, left):
    for path in ("docs", "./docs/", "docs/**"):
        assert names(path, exclude=[exclude]) == left
    found = listing("docs", "docs/d.min.js", exclude=[exclude]).sources
    assert "docs/d.min.js" in [source.path for source in found], "what is named is wanted"


def test_exclusions_are_counted(tree):
    patterns = ["*.js", "deep", "nothing"]
    found = listing("docs", exclude=patterns)
    assert found.excluded == {"*.js": 2, "deep": 1, "nothing": 0}
    assert [source.name for source in found.sources] == ["a.txt"]


def test_files_without_an_extension(tree):
    assert listing("docs").left_aside == {"(none)": 1}
    for name in ("none", "(none)", "NONE"):
        assert "deep/README" in names("docs", extensions=text_extensions([name]))
    with pytest.raises(InputError, match="without an extension are --extensions=none"):
        text_extensions(["txt", ""])


def test_globs_read_directories_that_match(tree):
    assert names("docs/*") == ALL
    assert names("d*") == [f"docs/{name}" for name in ALL]
    assert names("**/deep") == ["docs/deep/b.txt"]
    assert names("docs/**/b.*") == ["deep/b.txt"]


def test_what_this_project_made_is_passed_over(tree):
    made = {
        "data": ("dataset.json", "sources.jsonl", "tokenizer.json", "train/x/part.txt"),
        "run": ("checkpoints/1/x.txt", "timeline.jsonl", "metrics.jsonl"),
        "model": ("checkpoints/3/metadata/data.json",),
    }
    for directory, files in made.items():
        for name in files:
            path = tree / "docs" / directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    for path in ("docs", "docs/**", "docs/*"):
        assert names(path) == ALL
        assert {os.path.basename(p): what for p, what in listing(path).passed_over.items()} == {
            "data": "a prepared data set",
            "run": "the directory of a run",
            "model": "a model",
        }
    with pytest.raises(InputError, match=r"^docs/data: a prepared data set; name the texts"):
        listing("docs/data")
