"""Bricks go into a model on disk and out of it again, and nothing else changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.bricks import IA3, Adapter, Brick, BrickConfig, LoRA
from modbrick.checkpoints import BaseModel, Metadata, save_model
from modbrick.data import ByteTokenizer
from modbrick.decoder.functional import initial_parameters
from modbrick.errors import InputError
from modbrick.library import Base, Manifest, write_brick
from modbrick.models import fold_model, load_model, open_model, unfold_model
from tests.modbrick.bricks import tiny

MODEL = dataclasses.replace(tiny.MODEL, vocabulary=257)

BRICKS = {
    "low": BrickConfig(("layer.1-2.attention.query", "head"), LoRA(rank=2)),
    "gain": BrickConfig(("layer.*.attention.value",), IA3()),
    "narrow": BrickConfig(("layer.0.feed_forward",), Adapter(hidden=2)),
}
TOKENS = jnp.asarray([[3, 1, 4, 1, 5]])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in bfloat16, files of bricks for it, and a run of one of them."""
    folder = tmp_path_factory.mktemp("house")
    about = Metadata(MODEL, tokenizer=dataclasses.asdict(ByteTokenizer().identity))
    parameters = initial_parameters(MODEL, jax.random.key(0))
    halves = {path: x.astype(jnp.bfloat16) for path, x in parameters.items()}
    text = ByteTokenizer().to_json()
    dtypes = dict.fromkeys(halves, jnp.bfloat16)
    save_model(folder / "model", halves, about, tokenizer=text, step=7, dtypes=dtypes)
    base = Base(MODEL, open_model(folder / "model").fingerprint())
    values = tiny.random_bricks(BRICKS, MODEL)
    for name, config in BRICKS.items():
        brick = Brick.of_parameters(name, config, MODEL, values)
        write_brick(folder / f"{name}.brick", brick, Manifest.of(name, config, MODEL, base=base))
    low = {"low": BRICKS["low"]}
    of_run = dataclasses.replace(
        about, bricks=low, base=BaseModel(str(folder / "model"), base.fingerprint)
    )
    own = {path: x for path, x in values.items() if path.startswith("bricks.low.")}
    save_model(folder / "run", own, of_run, tokenizer=text)
    return folder


def weights(path: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in open_model(path).read().items()}


def same(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        assert value.dtype == theirs[path].dtype
        assert value.tobytes() == theirs[path].tobytes(), path
    assert open_model(one).fingerprint() == open_model(other).fingerprint()


def test_two_foldings_are_undone_one_after_the_other(house: Path, tmp_path: Path) -> None:
    one = open_model(house / "model").with_bricks([house / "low.brick"])
    fold_model(one, tmp_path / "one")
    # The second was trained on the model without the first: the user says that it fits.
    two = open_model(tmp_path / "one")
    with pytest.raises(InputError, match="trained on other weights"):
        two.with_bricks([house / "gain.brick"])
    fold_model(two.with_bricks([house / "gain.brick"], allow_base="any"), tmp_path / "two")
    assert unfold_model(open_model(tmp_path / "two"), tmp_path / "back") == ("gain",)
    same(tmp_path / "back", tmp_path / "one")
    assert unfold_model(open_model(tmp_path / "back"), tmp_path / "again") == ("low",)
    same(tmp_path / "again", house / "model")
    assert not (tmp_path / "again" / "folded").exists()
    assert open_model(tmp_path / "again").tokenizer().to_json() == ByteTokenizer().to_json()
    assert open_model(tmp_path / "again").step == 7
    with pytest.raises(InputError, match="nothing was folded into it"):
        unfold_model(open_model(tmp_path / "again"), tmp_path / "further")


def test_what_is_kept_is_what_was_replaced(house: Path, tmp_path: Path) -> None:
    fold_model(open_model(house / "run"), tmp_path / "new")  # a run's own brick
    before, after = weights(house / "model"), weights(tmp_path / "new")
    changed = {path for path, x in before.items() if (x != after[path]).any()}
    assert changed == {"segments.0.attention.query.weight", "head.weight"}
    query = "segments.0.attention.query.weight"
    assert np.array_equal(before[query][0], after[query][0]), "a layer without the brick"
    kept = (tmp_path / "new" / "folded" / "0.safetensors").stat().st_size
    assert kept < before[query].nbytes + before["head.weight"].nbytes + 2000
    logits = load_model(tmp_path / "new", dtype="float32")(TOKENS).logits
    beside = load_model(house / "run", dtype="float32")(TOKENS).logits
    np.testing.assert_allclose(logits, beside, atol=0.02 * np.abs(beside).max())  # bfloat16 weights


def test_nothing_is_written_where_something_is_wrong(house: Path, tmp_path: Path) -> None:
    model, new = open_model(house / "model"), tmp_path / "new"
    with pytest.raises(InputError, match="has no bricks to fold"):
        fold_model(model, new)
    with pytest.raises(InputError, match="brick narrow cannot be folded"):
        fold_model(model.with_bricks([house / "narrow.brick"]), new)
    fold_model(model.with_bricks([house / "low.brick"]), tmp_path / "folded")
    with pytest.raises(InputError, match="holds something already"):
        fold_model(model.with_bricks([house / "low.brick"]), tmp_path / "folded")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folded"]


@pytest.mark.parametrize("fault", ["weights", "truncated", "missing", "header", "shape"])
def test_what_cannot_be_undone_is_refused(house: Path, tmp_path: Path, fault: str) -> None:
    model = open_model(house / "model").with_bricks([house / "low.brick"])
    fold_model(model, tmp_path / "new")
    kept = tmp_path / "new" / "folded" / "0.safetensors"
    content = kept.read_bytes()
    said = {
        "truncated": content[:-1],
        "header": content.replace(b'"base', b'"bass'),
    }
    said["shape"] = content.replace(b"segments.0.attention.query", b"segments.0.attention.quary")
    assert content not in said.values()
    if fault == "weights":
        about = open_model(tmp_path / "new").description
        assert about is not None
        other = {path: x + 1 for path, x in open_model(tmp_path / "new").read().items()}
        save_model(
            tmp_path / "changed", other, about.metadata, dtypes=dict.fromkeys(other, jnp.bfloat16)
        )
        (tmp_path / "changed" / "folded").mkdir()
        (tmp_path / "changed" / "folded" / "0.safetensors").write_bytes(content)
        (tmp_path / "new").rename(tmp_path / "old")
        (tmp_path / "changed").rename(tmp_path / "new")
    elif fault == "missing":
        kept.rename(kept.with_name("1.safetensors"))
    else:
        kept.write_bytes(said[fault])
    with pytest.raises(InputError):
        unfold_model(open_model(tmp_path / "new"), tmp_path / "back")
    assert not (tmp_path / "back").exists()
