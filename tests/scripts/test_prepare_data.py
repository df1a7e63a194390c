import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tokenizers

from modbrick.checkpoints import describe
from modbrick.convert import import_checkpoint, open_checkpoint
from modbrick.data.dataset import Dataset
from modbrick.data.tokenizers.files import train_tokenizer
from modbrick.data.tokenizers.tokenizer import TokenizerIdentity
from modbrick.schema import from_mapping
from tests import programs

ROOT = Path(__file__).parents[2]


def command(*arguments):
    return [sys.executable, str(ROOT / "scripts" / "prepare_data.py"), *map(str, arguments)]


def run(*arguments, cwd):
    return programs.run([ROOT / "scripts" / "prepare_data.py", *arguments], cwd=cwd)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(30):
        (tmp_path / "in" / f"{i}.txt").write_text(f"text {i}\n" * 10)
    return tmp_path


def test_it_makes_a_data_set_and_reports(files):
    (files / "in" / "latin.txt").write_bytes(b"\xe4")
    (files / "in" / "p.png").write_bytes(b"x")
    done = run(
        "--input", "a=in/1*.txt", "in/2.txt", "in/latin.txt", "in", "--output", "out",
        "--tokenizer", "byte", "--held_out", "0.2", cwd=files,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "latin.txt: not UTF-8" in done.stdout
    assert "left aside, by extension: 1 .png" in done.stdout
    data = Dataset.open(str(files / "out"))
    assert set(data.domains("train")) == {"a", "in", "2"} or "2" in data.domains("held_out")
    again = run("--input", "in", "--output", "out", cwd=files)
    assert again.returncode == 2
    assert "already holds a finished data set" in again.stderr
    assert run("--input", "in", "--output", "out", "--overwrite", cwd=files).returncode == 0


def test_the_tokenizer_of_a_model_brings_its_boundary_tokens(files):
    source, model = files / "source", files / "model"
    shutil.copytree(ROOT / "tests/fixtures/moduleformer/molm_like", source)
    tokenizer = tokenizers.Tokenizer.from_str(train_tokenizer(iter(["text"]), 257).to_json())
    tokenizer.add_special_tokens(["<|im_end|>"])
    (source / "tokenizer.json").write_text(tokenizer.to_str())
    (source / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    import_checkpoint(open_checkpoint(source), model)
    done = run("--input", "in", "--output", "out", "--tokenizer", "model", cwd=files)
    assert done.returncode == 0, done.stderr
    identity = Dataset.open(str(files / "out")).tokenizer_identity
    assert identity.end_of_document == 257
    known = from_mapping(TokenizerIdentity, describe(model).metadata.tokenizer)
    assert known == dataclasses.replace(identity, name=str(source))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inptu", "in", "--output", "out"], "--inptu: unknown flag; did you mean --input?"),
        (["--input", "in"], "no --output"),
        (["--output", "out"], "no --input"),
        (["--input", "i", "--output", "out"], "no such file or directory"),
        (["--input", "in", "--output", "."], "holds something else"),
        (["--input", "in", "--output", "out", "--workers", "two"], "--workers=two"),
        (["--input", "in", "--output", "out", "--tokenizer", "x.json"], "no tokenizer there"),
        (["--input", "in", "--output", "out", "--document_separator="], "_separator is empty"),
        (["--input", "in", "--output", "out", "--deduplicate", "no"], "none|exact|near"),
        (
            ["--input=in", "--output=o", "--tokenizer=train", "--vocab_size=300", "--end_token=x"],
            "--end_token: a tokenizer that is trained has its own",
        ),
        (["--input", "in", "--output", "caf\udce9"], "the name is not UTF-8"),
    ],
)
def test_bad_input_is_one_line_and_status_2(files, arguments, message):
    done = run(*arguments, cwd=files)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert sorted(p.name for p in files.iterdir()) == ["in"]


def test_a_second_preparation_of_the_same_folder_does_not_meet_the_first(files):
    arguments = ["--input", ".", "--exclude", "1*.txt", "--deduplicate=exact"]
    first = run(*arguments, "--output", "data", cwd=files)
    assert first.returncode == 0, first.stderr
    second = run(*arguments, "--output", "more", cwd=files)
    assert "passed over: ./data (a prepared data set)" in second.stdout
    assert run(*arguments, "--output", "data", "--overwrite", cwd=files).returncode == 0
    one, two = (Dataset.open(str(files / name)) for name in ("data", "more"))
    assert one.fingerprint == two.fingerprint
    assert one.manifest.arguments == two.manifest.arguments
    assert one.manifest.arguments["exclude"] == ["1*.txt"]
    assert sum(d.documents for s in one.manifest.splits.values() for d in s.values()) == 19


def test_names_of_any_bytes_and_the_home_directory(files):
    (files / "in" / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"\xe4")
    line = [ROOT / "scripts" / "prepare_data.py", "--input", "~/in", "--output", "~/out put"]
    done = programs.run(line, cwd=files / "in", environment={"HOME": str(files)})
    assert done.returncode == 0, done.stderr
    assert r"caf\udce9.txt: not UTF-8 (1)" in done.stdout
    assert Dataset.open(str(files / "out put")).manifest.sources["in"].files == 31


def test_help_tells_the_flags(files):
    done = run("--help", cwd=files)
    assert done.returncode == 0
    for flag in ("--input", "--tokenizer", "--held_out", "--text_field", "--[no]overwrite"):
        assert flag in done.stdout
    assert "stdlib:" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_interrupted(files, number):
    line = '{"text": "' + "some words to be read " * 50 + '"}\n'
    (files / "big.jsonl").write_text(line * 200_000)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = ["--input", "big.jsonl", "--output", "out", "--workers", "1"]
    process = subprocess.Popen(
        command(*arguments),
        cwd=files,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that runs in the background ignores interrupts, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 60
    while not list(files.glob(".out.preparing/train/big/*.array_record")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors
    assert sorted(p.name for p in files.iterdir()) == ["big.jsonl", "in"]
