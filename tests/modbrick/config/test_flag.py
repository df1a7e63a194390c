"""Values of a config from the command line: types, names, kinds, and one line for each mistake."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from absl import flags

from modbrick.config.flag import DEFINE_config
from modbrick.errors import InputError


@dataclasses.dataclass(frozen=True)
class Slow:
    steps: int = 1
    ratio: float = 0.5
    kind: Literal["slow"] = "slow"


@dataclasses.dataclass(frozen=True)
class Fast:
    power: int
    steps: int = 1
    kind: Literal["fast"] = "fast"


@dataclasses.dataclass(frozen=True)
class Weight:
    start: float
    end: float = 0.0


@dataclasses.dataclass(frozen=True)
class Layer:
    width: int
    name: str = "layer"
    pace: Slow | Fast = Slow()


@dataclasses.dataclass(frozen=True)
class Whole:
    layers: tuple[Layer, ...]
    rate: float = 0.1
    count: int | None = None
    place: str | None = None
    loud: bool = True
    names: tuple[str, ...] = ()
    mode: Literal["none", "all"] = "all"
    pace: Slow | Fast = Slow()
    weight: float | Weight = 0.0
    extra: Weight | None = None
    shares: Mapping[str, float] | None = None
    named: Mapping[str, Slow | Fast] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise InputError(f"rate must be positive, got {self.rate}")


CONFIG = """
from tests.modbrick.config.test_flag import Layer, Slow, Whole, Weight
def get_config(layers="2"):
    layers = tuple(Layer(width) for width in range(int(layers)))
    return Whole(layers, place="here", pace=Slow(steps=7, ratio=0.3))
"""
OLDER = """
from ml_collections import ConfigDict, config_dict
def get_config():
    return ConfigDict({"layers": ({"width": 0}, {"width": 1}), "place": "here",
        "pace": {"kind": "slow", "steps": 7, "ratio": 0.3}, "count": config_dict.placeholder(int)})
"""
BASE = Whole((Layer(0), Layer(1)), place="here", pace=Slow(steps=7, ratio=0.3))


@pytest.fixture(params=[CONFIG, OLDER], ids=["record", "config_dict"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    path = tmp_path / "config.py"
    path.write_text(request.param)
    return str(path)


def read(*arguments: str) -> Whole | None:
    """The config as a script with these arguments has it."""
    values = flags.FlagValues()
    argv = ["script", *arguments]
    config = DEFINE_config("config", Whole, flag_values=values, argv=argv)
    values(argv)
    return config.value


def test_no_file_is_no_config() -> None:
    assert read() is None


def test_a_file_alone_is_what_it_says(file: str) -> None:
    assert read(f"--config={file}") == BASE


def test_an_argument_is_given_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    config = read(f"--config={path}:3", "--config.layers[2].width=9")
    assert config is not None
    assert [layer.width for layer in config.layers] == [0, 1, 9]


@pytest.mark.parametrize(
    ("overrides", "change"),
    [
        (["rate=2"], {"rate": 2.0}),
        (["rate=1e-3"], {"rate": 1e-3}),
        (["count=5"], {"count": 5}),
        (["count=1e3"], {"count": 1000}),
        (["count=5", "count=None"], {"count": None}),
        (["place=None"], {"place": None}),
        (["place=2024"], {"place": "2024"}),
        (["place="], {"place": ""}),
        (["mode=none"], {"mode": "none"}),
        (["loud=false"], {"loud": False}),
        (["names=a"], {"names": ("a",)}),
        (["names=('a', 'b')"], {"names": ("a", "b")}),
        (["names=a", "names=b"], {"names": ("a", "b")}),
        (["weight=0.5"], {"weight": 0.5}),
        (["weight={'start': 2}"], {"weight": Weight(2.0)}),
        (["weight.start=2"], {"weight": Weight(2.0)}),
        (["extra.start=1", "extra.end=3"], {"extra": Weight(1.0, 3.0)}),
        (["extra={'start': 1}", "extra.end=3"], {"extra": Weight(1.0, 3.0)}),
        (["extra.start=1", "extra.end=3"][::-1], {"extra": Weight(1.0, 3.0)}),
        (["shares={'a': 1}", "shares.b=0.5"], {"shares": {"a": 1.0, "b": 0.5}}),
        (["shares['a-b']=2"], {"shares": {"a-b": 2.0}}),
        (["named.a.kind=fast", "named.a.power=2"], {"named": {"a": Fast(2)}}),
        (["named={'a': {'kind': 'slow'}}", "named.a.steps=3"], {"named": {"a": Slow(3)}}),
        (["layers[0].width=3"], {"layers": (Layer(3), Layer(1))}),
        (["layers[-1].name=last"], {"layers": (Layer(0), Layer(1, "last"))}),
        (["layers=({'width': 4},)"], {"layers": (Layer(4),)}),
        (["pace.steps=2"], {"pace": Slow(steps=2, ratio=0.3)}),
        # Another kind keeps what both have, and takes what is said of it, in any order.
        (["pace.kind=fast", "pace.power=2"], {"pace": Fast(power=2, steps=7)}),
        (["pace.power=2", "pace.kind=fast"], {"pace": Fast(power=2, steps=7)}),
        (["pace={'kind': 'fast', 'power': 3}"], {"pace": Fast(power=3)}),
        (
            ["layers[1].pace.kind=fast", "layers[1].pace.power=2"],
            {"layers": (Layer(0), Layer(1, pace=Fast(2)))},
        ),
    ],
)
def test_values_are_set_with_their_types(
    file: str, overrides: list[str], change: dict[str, Any]
) -> None:
    found = read(f"--config={file}", *(f"--config.{text}" for text in overrides))
    assert found == dataclasses.replace(BASE, **change)


def test_booleans_have_the_short_form(file: str) -> None:
    assert read(f"--config={file}", "--noconfig.loud") == dataclasses.replace(BASE, loud=False)
    assert read(f"--config={file}", "--config.loud") == BASE


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rat=1", r"rat: unknown config key; did you mean 'rate'\?"),
        ("layers[0].widht=1", r"layers\[0\]\.widht: unknown config key; did you mean 'width'"),
        ("pace.stepz=1", r"pace\.stepz: unknown config key; did you mean 'steps'"),
        ("layers[2].width=1", r"layers\[2\]: there are 2, counted from 0"),
        ("names[0]=a", r"names\[0\]: set the whole list, names=\('A', 'B'\)"),
        ("rate.more=1", r"rate\.more: unknown config key; none is known here"),
        ("rate=fast", "rate: expected float, got 'fast'"),
        ("rate=None", "rate: expected float, got None"),
        ("rate=-1", "rate must be positive, got -1.0"),
        ("count=2.5", "count: expected int, got 2.5"),
        ("mode=some", r"mode: 'some' is not one of \['none', 'all'\]"),
        ("loud=maybe", "loud=maybe"),
        ("pace.kind=quick", r"pace\.kind: 'quick' is not one of \['slow', 'fast'\]"),
        ("pace.kind=fast", r"pace\.power: missing; Fast needs it"),
        ("pace.power=3", r"pace\.power: kind 'slow' has none, only fast"),
        ("extra.end=3", r"extra\.start: missing; Weight needs it"),
        ("weight=heavy", "weight: expected float or Weight, got 'heavy'"),
        ("named.a.power=2", r"named\.a\.kind: missing; it can be slow, fast"),
        ("named.a.powr=2", r"named\.a\.powr: unknown config key; did you mean 'power'"),
        ("shares.a=x", r"shares\.a: expected float, got 'x'"),
    ],
)
def test_mistakes_are_refused_by_name(file: str, override: str, message: str) -> None:
    with pytest.raises((InputError, flags.Error), match=message) as refused:
        read(f"--config={file}", f"--config.{override}")
    assert "\n" not in str(refused.value)
