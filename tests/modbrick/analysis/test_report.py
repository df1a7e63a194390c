"""The report on a run, from its metrics and an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

from modbrick.analysis.report import write_report
from tests.modbrick.data.conftest import write_dataset


def test_everything_lies_beside_the_run(tmp_path: Path) -> None:
    texts = {"prose": ["say it again, " * 20]}
    write_dataset(tmp_path / "data", {"train": texts, "held_out": texts})
    (tmp_path / "run").mkdir()
    records = [{"step": 1, "next_token": 3.0}, {"step": 2, "evaluation": {"loss": 2.5}}]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "run" / "metrics.jsonl").write_text(lines)
    router = {"layers": {"load": [[0.5, 0.5], [0.0, 1.0]]}}
    evaluation = {
        "bits_per_byte": 0.01,
        "perplexity": 1.5,
        "documents": 1,
        "routers": {"segments.0.feed_forward": router},
    }
    text = write_report(tmp_path, evaluation, "it wrote this", 90.0)
    assert "the model is better" in text
    assert "time            1.5 minutes" in text
    assert f"python scripts/generate.py --checkpoint={tmp_path}/run --prompt='import '" in text
    assert (tmp_path / "sample.txt").read_text() == "it wrote this"
    for picture in ("loss.png", "expert_load.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
        assert f"{tmp_path}/{picture}" in text
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["model"] == evaluation
    assert result["seconds"] == 90
    assert result["gzip_bits_per_byte"] > 0.01
