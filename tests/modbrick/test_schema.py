"""Records in and out: exact round trips, strict reading, one clear line for each mistake."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modbrick.errors import InputError
from modbrick.schema import (
    convert,
    differences,
    from_json,
    from_mapping,
    json_text,
    kinds,
    nearest,
    to_json,
    to_mapping,
)


@dataclasses.dataclass(frozen=True)
class Wheel:
    radius: float
    material: Literal["steel", "rubber"] = "steel"

    def __post_init__(self):
        if self.radius <= 0:
            raise InputError(f"radius must be positive, got {self.radius}")


@dataclasses.dataclass(frozen=True)
class Cart:
    wheels: tuple[Wheel, ...]
    name: str = "cart"
    load: int | None = None
    spare: Wheel | None = None
    price: float | Wheel = 0.0
    sealed: bool = False
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Rail:
    gauge: float
    kind: Literal["rail"] = "rail"


@dataclasses.dataclass(frozen=True)
class Road:
    lanes: int = 1
    speed: float | None = None
    kind: Literal["road", "street"] = "road"

    def __post_init__(self):
        if self.lanes < 1:
            raise InputError(f"lanes must be at least 1, got {self.lanes}")

    @staticmethod
    def upgrade(data):
        """Reads the name that lanes had before."""
        return {"lanes" if key == "tracks" else key: value for key, value in data.items()}


Way = Rail | Road


@dataclasses.dataclass(frozen=True)
class Trip:
    first: Way
    others: tuple[Way, ...] = ()
    named: Mapping[str, Way] = dataclasses.field(default_factory=dict)
    back: Way | None = None


numbers = st.floats(0.001, 1e6)
wheels = st.builds(Wheel, numbers, st.sampled_from(["steel", "rubber"]))
carts = st.builds(
    Cart,
    st.lists(wheels, max_size=3).map(tuple),
    st.text(max_size=5),
    st.none() | st.integers(),
    st.none() | wheels,
    numbers | wheels,
    st.booleans(),
    st.dictionaries(st.text(max_size=3), numbers, max_size=2),
)


@given(carts)
def test_json_round_trip(cart):
    assert from_json(Cart, to_json(cart)) == cart
    assert from_mapping(Cart, to_mapping(cart)) == cart
    assert differences(to_mapping(cart), json.loads(to_json(cart))) == []


def test_numbers_are_read_as_the_field_says():
    cart = from_mapping(Cart, {"wheels": [{"radius": 1}], "load": 2.0})
    assert (type(cart.wheels[0].radius), type(cart.load)) == (float, int)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"wheels": [], "nmae": "x"}, r"nmae: unknown key; did you mean 'name'\?"),
        ({"wheels": [], "zzz": 1}, "zzz: unknown key; known: "),
        ({}, "wheels: missing; Cart needs it"),
        ({"wheels": [{"radius": 1}, {"radios": 1}]}, r"wheels\[1\]\.radios: unknown key"),
        ({"wheels": [{"radius": -1}]}, r"wheels\[0\]: radius must be positive, got -1"),
        ({"wheels": [{"radius": "1"}]}, r"wheels\[0\]\.radius: expected float, got '1'"),
        ({"wheels": [{"radius": True}]}, r"wheels\[0\]\.radius: expected float, got True"),
        ({"wheels": [{"radius": None}]}, r"wheels\[0\]\.radius: expected float, got None"),
        ({"wheels": "ab"}, "wheels: expected a list, got 'ab'"),
        ({"wheels": [3]}, r"wheels\[0\]: expected a mapping, got 3"),
        ({"wheels": [], "load": 1.5}, "load: expected int, got 1.5"),
        ({"wheels": [], "sealed": 1}, "sealed: expected bool, got 1"),
        ({"wheels": [], "shares": [1]}, "shares: expected a mapping"),
        ({"wheels": [], "shares": {"a": "b"}}, r"shares\.a: expected float, got 'b'"),
        ({"wheels": [{"radius": 1, "material": "stel"}]}, "did you mean 'steel'"),
        ("cart", "Cart: expected a mapping, got 'cart'"),
    ],
)
def test_bad_data_is_refused_with_its_path(data, message):
    with pytest.raises(InputError, match=message) as error:
        from_mapping(Cart, data)
    assert "\n" not in str(error.value)


ways = st.builds(Rail, numbers) | st.builds(
    Road, st.integers(1, 9), st.none() | numbers, st.sampled_from(["road", "street"])
)


@given(
    st.builds(
        Trip,
        ways,
        st.lists(ways, max_size=2).map(tuple),
        st.dictionaries(st.text(max_size=2), ways, max_size=2),
        st.none() | ways,
    )
)
def test_records_of_a_union_are_told_apart_by_their_kind(trip):
    assert from_json(Trip, to_json(trip)) == trip
    assert from_mapping(Trip, {"first": trip.first}) == Trip(trip.first)
    assert convert(Way, to_mapping(trip.first)) == trip.first


def test_a_record_of_before_is_upgraded_wherever_it_stands():
    assert from_mapping(Road, {"tracks": 3}) == Road(3)
    assert convert(Rail | Road, {"kind": "road", "tracks": 3}) == Road(3)
    assert convert(Road | None, {"tracks": 3}) == Road(3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"first": {"gauge": 1.0}}, "first.kind: missing; it can be rail, road, street"),
        ({"first": {"kind": "raod"}}, "first.kind: 'raod' is not one of .*did you mean 'road'"),
        ({"first": {"kind": ["rail"]}}, r"first.kind: \['rail'\] is not one of"),
        ({"first": {"kind": "rail"}}, "first.gauge: missing; Rail needs it"),
        (
            {"first": {"kind": "rail", "gauge": 1, "lanes": 2}},
            "first.lanes: kind 'rail' has none, only road, street",
        ),
        (
            {"first": {"kind": "street", "gaug": 1}},
            r"first.gaug: unknown key; known: kind, lanes, speed",
        ),
        ({"first": {"kind": "road", "lanes": 0}}, "first: lanes must be at least 1, got 0"),
        ({"first": {"kind": "road", "lanes": "x"}}, "first.lanes: expected int, got 'x'"),
        ({"first": "rail"}, "first: expected Rail or Road, got 'rail'"),
        ({"first": None}, "first: expected Rail or Road, got None"),
        ({"first": Road(), "named": {"a": {"kind": "x"}}}, r"named\.a\.kind: 'x' is not one of"),
        ({"first": Road(), "others": [{}]}, r"others\[0\]\.kind: missing"),
        ({"first": Road(), "back": 3}, "back: expected Rail or Road, got 3"),
    ],
)
def test_what_is_no_record_of_a_union_is_refused_by_name(data, message):
    with pytest.raises(InputError, match=message) as error:
        from_mapping(Trip, data)
    assert "\n" not in str(error.value)


def test_a_union_names_all_that_it_can_be():
    with pytest.raises(InputError, match="price: expected float or Wheel, got 'dear'"):
        from_mapping(Cart, {"wheels": [], "price": "dear"})


def test_kinds_of_a_union_are_distinct():
    assert kinds(Way | None) == {"rail": Rail, "road": Road, "street": Road}
    with pytest.raises(TypeError, match="Wheel needs a field kind"):
        kinds(Rail | Wheel)
    twin = dataclasses.make_dataclass("Twin", [("kind", Literal["rail"], "rail")])
    with pytest.raises(TypeError, match=r"Twin needs a field kind: Literal\[\.\.\.\] of its own"):
        kinds(Rail | twin)


def test_text_that_is_no_json_is_refused():
    with pytest.raises(InputError, match=r"cart\.json: not valid JSON"):
        from_json(Cart, "{", "cart.json")


def test_differences_name_each_leaf():
    one = to_mapping(Cart((Wheel(1.0), Wheel(2.0)), load=3))
    other = to_mapping(Cart((Wheel(1.0), Wheel(2.5)), name="van"))
    assert differences(one, other) == [
        "wheels[1].radius: 2.0 -> 2.5",
        'name: "cart" -> "van"',
        "load: 3 -> null",
    ]
    assert differences({"a": [1]}, {"a": [1, 2], "b": 1}) == ["a: [1] -> [1, 2]", "b: null -> 1"]


def test_nearest():
    assert nearest("heds", ["heads", "width"]) == "did you mean 'heads'?"
    assert nearest("q", ["heads", "width"]) == "known: heads, width"
    assert nearest("q", []) == "none is known here"


def test_json_text_has_no_words_that_json_lacks() -> None:
    data = {"a": float("nan"), "b": [float("inf"), (1.5, None)], "c": {"d": -float("inf")}}
    assert json_text(data) == '{"a": null, "b": [null, [1.5, null]], "c": {"d": null}}'
    assert json_text({"a": 1}, indent=1) == '{\n "a": 1\n}'
