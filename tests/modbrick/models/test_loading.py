"""Models and parameters from own and foreign checkpoints: into memory, and onto a mesh."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import modbrick
from modbrick.bricks import IA3, BrickConfig, LoRA, initial_bricks
from modbrick.checkpoints import BaseModel, Metadata, save_model
from modbrick.config import (
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
    RouterConfig,
    SegmentConfig,
)
from modbrick.convert import import_checkpoint, open_checkpoint
from modbrick.convert.placing import read_onto_devices
from modbrick.data import ByteTokenizer
from modbrick.decoder.decoder import Decoder
from modbrick.decoder.functional import functional_decoder, initial_parameters, parameters_of
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.library import brick_of_run, write_brick
from modbrick.models import open_model
from tests.modbrick.layers.tiny import run

pytestmark = pytest.mark.usefixtures("quick_compilation")
TOKENS = jnp.arange(24).reshape(2, 12) % 32
ROOT = Path(__file__).parents[3]
FIXTURES = ROOT / "tests/fixtures/moduleformer"
HALF, FULL = FIXTURES / "tied_half_identity", FIXTURES / "molm_like"
UP, QUERY = "segments.0.feed_forward.up.weight", "segments.0.attention.query.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, Path]:
    experts = ExpertsConfig(4, 2, RouterConfig(hidden=8))
    layer = LayerConfig(
        AttentionConfig(2, 8, experts=experts), FeedForwardConfig(16, experts=experts)
    )
    config = ModelConfig(32, 16, (SegmentConfig(layer, 2),), dtype="float32")
    model = functional_decoder(config).bind(initial_parameters(config, jax.random.key(5)))
    directory = tmp_path_factory.mktemp("model")
    save_model(directory, parameters_of(model), Metadata(config))
    return model, directory


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("foreign") / "imported"
    import_checkpoint(open_checkpoint(HALF), directory)
    return directory


def test_logits_are_those_of_the_saved_model(saved: tuple[Decoder, Path]) -> None:
    model, directory = saved
    loaded = modbrick.load_model(directory)
    assert loaded.config == model.config
    assert np.array_equal(run(loaded, TOKENS).logits, run(model, TOKENS).logits)


def test_execution_and_dtype_are_as_asked(saved: tuple[Decoder, Path]) -> None:
    model, directory = saved
    execution = ExecutionConfig(rematerialisation="full")
    loaded = modbrick.load_model(directory, dtype="bfloat16", execution=execution)
    assert loaded.execution == execution
    assert loaded.embedding[...].dtype == jnp.bfloat16
    a, b = (np.asarray(run(m, TOKENS).logits, np.float32) for m in (loaded, model))
    assert 0 < np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b)


BRICKS = {
    "low": BrickConfig(("layer.*.attention.query",), LoRA(rank=2)),
    "gain": BrickConfig(("layer.1.attention.value",), IA3()),
}


@pytest.fixture(scope="module")
def files(saved: tuple[Decoder, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bricks for the saved model: a run that trained them, and a file of each."""
    model, directory = saved
    folder, random = tmp_path_factory.mktemp("bricks"), np.random.default_rng(3)
    initial = initial_bricks(model.config, BRICKS, jax.random.key(0))
    values = {path: x + 0.3 * random.standard_normal(x.shape) for path, x in initial.items()}
    base = BaseModel(str(directory), open_model(directory).fingerprint())
    save_model(folder / "run", values, Metadata(model.config, bricks=BRICKS, base=base))
    for name in BRICKS:
        write_brick(folder / f"{name}.brick", *brick_of_run(folder / "run", name))
    return folder


def test_bricks_of_files_are_those_of_their_run(saved: tuple[Decoder, Path], files: Path) -> None:
    _, directory = saved
    run_model = modbrick.load_model(files / "run")
    both = modbrick.load_model(directory, bricks=[files / "low.brick", files / "gain.brick"])
    logits = run(both, TOKENS).logits
    assert np.array_equal(logits, run(run_model, TOKENS).logits)
    one = modbrick.load_model(directory, bricks=[files / "gain.brick"], dtype="float32")
    assert not np.array_equal(run(one, TOKENS).logits, logits)
    stored = open_model(directory)
    assert stored.with_bricks([]) is stored
    plugged = stored.with_bricks([files / "low.brick"])
    assert plugged.bricks == {"low": BRICKS["low"]}
    assert plugged.fingerprint() == stored.fingerprint()
    further = plugged.with_bricks([files / "gain.brick"])
    assert list(further.bricks) == ["low", "gain"]
    assert further.read_all().keys() == open_model(files / "run").read_all().keys()


def test_bricks_that_do_not_belong_together(saved: tuple[Decoder, Path], files: Path) -> None:
    _, directory = saved
    with pytest.raises(InputError, match=r"two bricks are named low, in .*run, step 0 and in"):
        modbrick.load_model(files / "run", bricks=[files / "low.brick"])
    brick, manifest = brick_of_run(files / "run", "gain")
    write_brick(files / "more.brick", brick, dataclasses.replace(manifest, name="more"))
    stored = open_model(files / "run").with_bricks([files / "more.brick"])
    assert list(stored.bricks) == ["low", "gain", "more"]
    plugged = open_model(directory).with_bricks([files / "low.brick"])
    with pytest.raises(InputError, match="two bricks are named low"):
        plugged.with_bricks([files / "low.brick"])
    with pytest.raises(InputError, match=r"low\.brick does not fit .*: layer\.0\.attention\.query"):
        modbrick.load_model(HALF, bricks=[files / "low.brick"], allow_base="any")


def test_where_no_model_is(tmp_path: Path, saved: tuple[Decoder, Path]) -> None:
    for load in (modbrick.load_model, modbrick.load_parameters):
        with pytest.raises(InputError, match="no checkpoint"):
            load(tmp_path)
        with pytest.raises(InputError, match="no checkpoint of step 3"):
            load(saved[1], 3)
        with pytest.raises(InputError, match="a single checkpoint, without steps"):
            load(HALF, 3)


def test_unknown_names_of_the_package_stay_unknown() -> None:
    with pytest.raises(AttributeError, match="load_modle"):
        modbrick.load_modle  # noqa: B018


def test_own_and_foreign_checkpoints_load_alike(imported: Path) -> None:
    checkpoint = open_checkpoint(HALF)
    for source, words in (
        (HALF, "format moduleformer"),
        (imported, "step 0"),
        (imported / "checkpoints" / "0", "step 0"),
    ):
        stored = open_model(source)
        assert words in stored.origin
        assert stored.config == checkpoint.model
        for dtype, wanted in ((None, jnp.float16), ("float32", jnp.float32)):
            parameters = modbrick.load_parameters(source, dtype=dtype)
            assert list(parameters) == [info.path for info in checkpoint.correspondence.parameters]
            for path, value in parameters.items():
                assert value.dtype == wanted
                assert np.array_equal(value, checkpoint.read(path).astype(wanted)), path
        loaded = modbrick.load_model(source, dtype="bfloat16")
        assert loaded.config.dtype == loaded.embedding[...].dtype == "bfloat16"


def test_the_tokenizer_comes_from_where_the_model_lies(tmp_path: Path, imported: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(FULL, source)
    stored = open_model(source)
    assert stored.tokenizer_identity() is None
    with pytest.raises(InputError, match=f"^{source}, .* has no tokenizer"):
        stored.tokenizer()
    with pytest.raises(InputError, match="has no tokenizer"):
        open_model(imported).tokenizer()
    (source / "tokenizer.json").write_text(ByteTokenizer().to_json())
    assert stored.tokenizer().encode("ab").tolist() == [97, 98]
    import_checkpoint(stored.contents, tmp_path / "ours")
    ours = open_model(tmp_path / "ours")
    assert ours.step == 0
    assert stored.step is None
    assert ours.tokenizer().identity == ByteTokenizer().identity
    for identity in (ours.tokenizer_identity(), stored.tokenizer_identity()):
        assert identity is not None
        identity.require_same(ByteTokenizer().identity, "one", "the other")


def test_some_parameters_in_dtypes_of_their_own(imported: Path) -> None:
    for source in (HALF, imported):
        found = modbrick.load_parameters(source, paths=[UP, QUERY], dtype={UP: "bfloat16"})
        assert {path: str(value.dtype) for path, value in found.items()} == {
            QUERY: "float16",
            UP: "bfloat16",
        }
        whole = modbrick.load_parameters(source)
        assert np.array_equal(found[QUERY], whole[QUERY])
        assert np.array_equal(found[UP], whole[UP].astype(jnp.bfloat16))
        with pytest.raises(InputError, match=r"no parameter nrom\.scale; did you mean"):
            modbrick.load_parameters(source, paths=["nrom.scale"])


def test_damage_to_what_is_read_is_found(imported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(imported, copy)
    largest = max((copy / "checkpoints").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2 :: 97] = b"\x11" * len(content[len(content) // 2 :: 97])
    largest.write_bytes(content)
    paths = [info.path for info in open_checkpoint(HALF).correspondence.parameters]
    refusals = []
    for path in paths:
        try:
            modbrick.load_parameters(copy, paths=[path])
        except InputError as error:
            refusals.append(str(error))
    assert refusals
    assert all("is damaged" in message for message in refusals)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "tests/fixtures/llama/bfloat16_yarn", source)
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][0, :3] = np.nan
    save_file(tensors, source / "model.safetensors")
    for load in (modbrick.load_model, modbrick.load_parameters):
        with pytest.raises(InputError, match=rf"3 weights are not finite: 3 in {name} \("):
            load(source)
    modbrick.load_parameters(source, paths=["embedding"])


def test_another_model_is_refused() -> None:
    model = open_model(HALF).config
    for allowed in (model.replace(context=7), model.replace(router_statistics="valid")):
        modbrick.load_parameters(HALF, config=allowed)
    other = model.replace(norm=type(model.norm)(epsilon=1e-6))
    with pytest.raises(InputError, match=r"another model .*norm\.epsilon: 1e-05 -> 1e-06"):
        modbrick.load_parameters(HALF, config=other)


ON_A_MESH = """
import json, sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from jax.sharding import NamedSharding, PartitionSpec as P
from modbrick import load_parameters
from modbrick.convert import open_checkpoint

checkpoint = open_checkpoint(sys.argv[1])
mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
read = {}
original = type(checkpoint).read

def recorded(self, path, index=None, **options):
    values = original(self, path, index, **options)
    read[path] = max(read.get(path, 0), values.size)
    return values

type(checkpoint).read = recorded
infos = list(checkpoint.correspondence.parameters)
specs = {}
for info in infos:  # the last two axes that two devices can share evenly
    even = [axis for axis, size in enumerate(info.shape) if size % 2 == 0][-2:]
    names = dict(zip(even, ("a", "b")))
    specs[info.path] = NamedSharding(mesh, P(*(names.get(i) for i in range(len(info.shape)))))
parameters = load_parameters(sys.argv[1], shardings=specs)
for info in infos:
    value = parameters[info.path]
    assert value.sharding == specs[info.path]
    assert np.array_equal(np.asarray(value), original(checkpoint, info.path))
print(json.dumps({info.path: [read[info.path], info.size] for info in infos}))
"""


def test_each_device_reads_its_share_only() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_A_MESH, str(FULL)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    most, whole = read[UP]
    assert most * 4 == whole


def test_a_foreign_model_is_read_once_to_know_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fingerprint reads every weight: a run on it and a brick of that run ask for it."""
    model = open_model(FULL)
    brick = {"low": BrickConfig(("layer.*.attention.query",), LoRA(rank=2))}
    values = initial_bricks(model.config, brick, jax.random.key(0))
    base = BaseModel(str(FULL), model.fingerprint())
    save_model(tmp_path / "run", values, Metadata(model.config, bricks=brick, base=base))
    found, manifest = brick_of_run(tmp_path / "run", "low")
    write_brick(tmp_path / "more.brick", found, dataclasses.replace(manifest, name="more"))
    reads: list[str] = []

    def counted(source: Any, wanted: list[str], *arguments: Any) -> Any:
        reads.extend(wanted)
        return read_onto_devices(source, wanted, *arguments)

    monkeypatch.setattr("modbrick.models.stored.read_onto_devices", counted)
    plugged = open_model(tmp_path / "run").with_bricks([tmp_path / "more.brick"])
    assert sorted(reads) == sorted(model.paths)
    plugged.read_all()
    assert len(reads) == 2 * len(model.paths)
