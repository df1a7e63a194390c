import json

import pytest

from modbrick.checkpoints import Leaf
from modbrick.checkpoints.metadata import DamagedError, new_description, seal, unseal
from modbrick.errors import InputError


@pytest.fixture
def description(metadata):
    leaf = Leaf((2, 3), "float32", 2**32 - 1)
    return new_description(4, metadata, {"loss": 0.1}, {"w": leaf}, {"count": Leaf((), "int32", 0)})


def test_reads_back_through_json(description):
    assert unseal(json.loads(json.dumps(seal(description))), "here") == description


def test_tells_the_bricks_and_the_versions(description):
    assert description.bricks["emergent"] == {
        "layer": 2,
        "attention.expert": 8,
        "feed_forward.expert": 0,
    }
    assert set(description.versions) == {"modbrick", "jax", "flax", "orbax-checkpoint"}


@pytest.mark.parametrize("data", [None, [], {}, {"sha256": ""}, {"sha256": "", "description": {}}])
def test_other_data_are_damage(data):
    with pytest.raises(DamagedError):
        unseal(data, "here")


def test_any_change_is_damage(description):
    data = json.loads(json.dumps(seal(description)))
    data["description"]["metadata"]["data"]["row"] += 1
    with pytest.raises(DamagedError, match="checksum"):
        unseal(data, "here")


def test_another_format_is_no_damage_and_names_who_wrote_it(description, monkeypatch):
    monkeypatch.setattr("modbrick.__version__", "9.8.7")
    monkeypatch.setattr("modbrick.checkpoints.metadata.FORMAT", 7)
    data = seal(new_description(1, description.metadata, {}, {}, None))
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"here: checkpoint format 7, written by modbrick 9\.8\.7"):
        unseal(data, "here")
