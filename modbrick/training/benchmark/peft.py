"""Measures training a LoRA beside the package peft, on the same small Llama."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from modbrick.bricks import BrickConfig, LoRA
from modbrick.config import ModelConfig
from modbrick.convert.families.llama import read_config
from modbrick.training.benchmark.bricks import ATTENTION, in_turn, ratio
from modbrick.training.benchmark.cases import Case
from modbrick.training.benchmark.measurement import CaseTraining
from modbrick.training.benchmark.other import OtherProcess


class LlamaCase(Case):
    """A dense Llama of a case's sizes; those of routers and experts are not used."""

    def model(self) -> ModelConfig:
        """Returns the model of this case."""
        sizes = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "intermediate_size": self.feed_forward_width,
            "max_position_embeddings": self.sequence,
            "rms_norm_eps": 1e-6,
            "torch_dtype": "float32",
        }
        return read_config(sizes, "the case").model.replace(dtype="float32")


def peft_cost(case: Case, command: Sequence[str], *, rounds: int, steps: int) -> dict[str, Any]:
    """Trains a LoRA of rank 8 on the attention projections here and with peft, in turn.

    Args:
      case: sizes of the model, and the batch.
      command: of the driver, see `OtherProcess`.
      rounds: of steps of each; times are medians over rounds, the ratio a median of ratios.
      steps: in a round.

    Returns:
      Figures, JSON-able; memory is the peak of the process of peft, and what the compiler says that
      a step needs here.

    Raises:
      InputError: the driver does not run.
    """
    case = LlamaCase(**dataclasses.asdict(case))
    ours = CaseTraining(case, bricks={"lora": BrickConfig(ATTENTION, LoRA(rank=8))})
    other = OtherProcess(command, case)
    seconds = in_turn(
        {"modbrick": lambda: ours.train(steps), "peft": lambda: other.train(steps)}, rounds
    )
    return {
        "case": dataclasses.asdict(case),
        "seconds_per_step": {name: statistics.median(found) for name, found in seconds.items()},
        "time_ratio": ratio(seconds["modbrick"], seconds["peft"]),
        "memory_bytes": {"modbrick": ours.memory_bytes(), "peft": other.close()},
        "rounds": seconds,
    }
