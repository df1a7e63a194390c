"""Identity of a run, and what of it may change when it is continued."""

from __future__ import annotations

import dataclasses
import json
import re
from types import SimpleNamespace
from typing import Any, cast

import pytest

from modbrick.checkpoints import CheckpointConfig
from modbrick.config.families import moduleformer
from modbrick.data import DataConfig, Dataset
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.objective import ObjectiveConfig
from modbrick.optimizer import OptimizerConfig
from modbrick.parallel import MeshConfig
from modbrick.schema import from_mapping, to_mapping
from modbrick.training.run_config import (
    EvaluationConfig,
    LoggingConfig,
    RunConfig,
    TrainingConfig,
    check_identity,
)

# An identity asks a data set for its fingerprint only.
DATASET = cast(Dataset, SimpleNamespace(fingerprint="f" * 64))
RUN = RunConfig(
    model=moduleformer(
        vocabulary=37,
        width=16,
        layers=2,
        heads=2,
        attention_width=8,
        feed_forward_width=12,
        attention_experts=3,
        feed_forward_experts=4,
        router_width=8,
    ),
    data=DataConfig(path="data", sequence_length=8, batch_size=12),
    training=TrainingConfig(steps=10),
    optimizer=OptimizerConfig(learning_rate=0.1),
)


def changed(**sections: Any) -> RunConfig:
    """RUN with fields of sections changed, or sections replaced."""
    return dataclasses.replace(
        RUN,
        **{
            name: dataclasses.replace(getattr(RUN, name), **value)
            if isinstance(value, dict)
            else value
            for name, value in sections.items()
        },
    )


def identity(**sections: Any) -> dict[str, Any]:
    """The identity of a changed run, as a checkpoint gives it back."""
    found = changed(**sections).identity(DATASET)
    plain: dict[str, Any] = json.loads(json.dumps(found))
    assert plain == found
    return plain


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"microbatches": 4}},
        {"execution": ExecutionConfig(rematerialisation="full", unroll=2)},
        {"execution": ExecutionConfig(attention="xla", dispatch="xla", head_chunk=16)},
        {"execution": ExecutionConfig(activation_memory="host", rematerialisation="full")},
        {"execution": ExecutionConfig(optimizer_memory="host", expert_parallelism="exchange")},
        # Nothing is exchanged, and nothing dropped.
        {"execution": ExecutionConfig(exchange_capacity=1.5)},
        {"mesh": MeshConfig(fsdp=2)},
        {"evaluation": EvaluationConfig(every=3)},
        {"checkpoint": CheckpointConfig(every=7)},
        {"logging": LoggingConfig(every=1, progress="none")},
        {"data": {"path": "elsewhere", "workers": 2, "prefetch": 1}},
    ],
)
def test_what_decides_no_parameter_is_no_part_of_the_identity(change: dict[str, Any]) -> None:
    assert changed(**change) != RUN
    assert identity(**change) == identity()


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"training": {"seed": 1}}, "training.seed"),
        ({"training": {"steps": 11}}, "training.steps"),
        ({"training": {"initial_checkpoint": "model"}}, "training.initial_checkpoint"),
        ({"optimizer": {"learning_rate": 0.2}}, "optimizer.learning_rate"),
        ({"objective": ObjectiveConfig(switch=0.1)}, "objective.switch"),
        ({"model": {"width": 32}}, "model.width"),
        ({"optimizer": {"trainable": ("*", "head")}}, "optimizer.trainable"),
        ({"optimizer": {"frozen": ("embedding",)}}, "optimizer.frozen"),
        (
            {"execution": ExecutionConfig(attention_tolerance=0.01)},
            "execution.attention_tolerance",
        ),
        (
            {"execution": ExecutionConfig(expert_parallelism="exchange", exchange_capacity=2.0)},
            "execution.exchange_capacity",
        ),
        ({"data": {"seed": 1}}, "data.seed"),
    ],
)
def test_what_decides_parameters_is_refused_by_name_or_allowed(
    change: dict[str, Any], path: str
) -> None:
    with pytest.raises(InputError, match=rf"^run .*\({re.escape(path)}: .* -> .*\): use another"):
        check_identity(identity(), identity(**change), [], "run")
    section = path.split(".")[0]
    for pattern in (path, section, f"{section}.*", "*"):
        (line,) = check_identity(identity(), identity(**change), ["other", pattern], "run")
        assert line.startswith(f"{path}: ")
    for pattern in ("", section[:-1], path[:-1], f"{path}.more", f"{section}s"):
        with pytest.raises(InputError, match=re.escape(path)):
            check_identity(identity(), identity(**change), [pattern], "run")


def test_another_data_set_is_another_identity() -> None:
    other = RUN.identity(cast(Dataset, SimpleNamespace(fingerprint="0" * 64)))
    with pytest.raises(InputError, match=r"data\.dataset"):
        check_identity(identity(), other, [], "run")


def test_all_differences_are_listed_and_the_proposed_remedy_allows_them() -> None:
    other = identity(
        optimizer={"learning_rate": 0.2, "frozen": ("layer.0.*",)},
        training={"steps": 20, "initial_checkpoint": "a\nb"},
    )
    with pytest.raises(InputError) as refused:
        check_identity(identity(), other, ["optimizer.learning_rate"], "runs/a")
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith("runs/a holds a run of another identity")
    for path in ("optimizer.frozen", "training.steps: 10 -> 20", "training.initial_checkpoint"):
        assert path in message
    assert "learning_rate" not in message, "what is allowed is no obstacle"
    remedy = message.split("--allow_change=")[1].split(",")
    assert len(check_identity(identity(), other, remedy, "runs/a")) == 4


def test_a_difference_inside_a_list_is_allowed_by_the_path_it_is_told_with() -> None:
    other = identity()
    other["model"]["segments"][0]["layer"]["attention"]["experts"]["top_k"] = 1
    with pytest.raises(InputError) as refused:
        check_identity(identity(), other, [], "run")
    path = str(refused.value).split("(")[1].split(": ")[0]
    assert path == "model.segments[0].layer.attention.experts.top_k"
    for pattern in (path, "model.segments[0]", "model.segments", "model.*.top_k"):
        assert len(check_identity(identity(), other, [pattern], "run")) == 1
    with pytest.raises(InputError):
        check_identity(identity(), other, ["model.segments[1]"], "run")


def test_equal_identities_differ_nowhere() -> None:
    assert check_identity(identity(), identity(), [], "run") == []


@pytest.mark.parametrize("microbatches", range(1, 14))
def test_microbatches_divide_the_batch(microbatches: int) -> None:
    if 12 % microbatches == 0:
        assert changed(training={"microbatches": microbatches}).training.microbatches
        return
    with pytest.raises(InputError, match=rf"batch_size 12 does not divide into {microbatches} "):
        changed(training={"microbatches": microbatches})


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (TrainingConfig, {"steps": 0}, "training steps must be at least 1, got 0"),
        (TrainingConfig, {"steps": 1, "microbatches": 0}, "microbatches must be at least 1, got 0"),
        (EvaluationConfig, {"every": -1}, "evaluation every must be at least 0, got -1"),
        (EvaluationConfig, {"max_tokens": 0}, "evaluation max_tokens must be at least 1, got 0"),
        (EvaluationConfig, {"batch_size": 0}, "evaluation batch_size must be at least 1, got 0"),
        (LoggingConfig, {"every": 0}, "logging every must be at least 1, got 0"),
    ],
)
def test_bad_values_are_named(section: type, values: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        section(**values)


def test_what_is_due() -> None:
    assert [s for s in range(1, 10) if EvaluationConfig(every=4).due(s)] == [4, 8]
    assert [s for s in range(1, 10) if LoggingConfig(every=3).due(s)] == [3, 6, 9]
    assert not any(EvaluationConfig(every=0).due(step) for step in range(10))


def test_a_run_survives_json() -> None:
    assert from_mapping(RunConfig, json.loads(json.dumps(to_mapping(RUN)))) == RUN
