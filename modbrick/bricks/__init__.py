"""Customized bricks and how they are attached to a model."""

from modbrick.bricks.attachment import attach
from modbrick.bricks.lora import LoRA

__all__ = ["LoRA", "attach"]
