"""Choices of execution are refused where they are made, not where they are used."""

from __future__ import annotations

from typing import Any

import pytest

from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.schema import from_mapping


@pytest.mark.parametrize("field", ["attention", "dispatch"])
@pytest.mark.parametrize(("name", "message"), [("flash", "flash"), ("", "''")])
def test_implementations_that_do_not_exist_are_refused(field: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"^execution\.{field}: .*{message}") as refused:
        from_mapping(ExecutionConfig, {field: name})
    assert "'xla'" in str(refused.value), "the remedy"
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("field", ["attention", "dispatch"])
@pytest.mark.parametrize("name", [None, "reference", "xla"])
def test_implementations_that_run_everywhere_are_accepted(field: str, name: str | None) -> None:
    assert getattr(from_mapping(ExecutionConfig, {field: name}), field) == name


@pytest.mark.parametrize("name", ["tpu", "gpu", "splash", "cudnn"])
def test_kernels_of_either_kind_of_attention_are_accepted(name: str) -> None:
    assert ExecutionConfig(attention=name).attention == name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"unroll": 0}, "unroll must be at least 1, got 0"),
        ({"attention_tolerance": 1.0}, "attention_tolerance must be from 0 .* below 1, got 1.0"),
        ({"attention_tolerance": float("nan")}, "attention_tolerance must be .* got nan"),
        ({"head_chunk": 0}, "head_chunk must be at least 1, got 0"),
        ({"activation_memory": "host"}, "is for rematerialisation full or sublayers.*got none"),
        (
            {"activation_memory": "host", "rematerialisation": "dots"},
            "is for rematerialisation full or sublayers.*got dots",
        ),
        ({"optimizer_memory": "disk"}, "'disk' is not one of"),
        ({"rematerialisation": "ful"}, "'ful' is not one of .* did you mean 'full'"),
    ],
)
def test_bad_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_mapping(ExecutionConfig, values)
