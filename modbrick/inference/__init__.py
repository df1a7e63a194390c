"""Text from a model: sampling, generation, and ids turned into text as they come."""

from modbrick.inference.generation import generate
from modbrick.inference.result import GenerationResult
from modbrick.inference.sampling import GREEDY, SamplingConfig
from modbrick.inference.text import TextStream

__all__ = ["GREEDY", "GenerationResult", "SamplingConfig", "TextStream", "generate"]
