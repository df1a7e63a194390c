"""Text from a model: sampling, generation, and ids turned into text as they come."""

from modbrick.inference.generation import GenerationResult, generate
from modbrick.inference.sampling import GREEDY, SamplingConfig
from modbrick.inference.text import TextStream

__all__ = ["GREEDY", "GenerationResult", "SamplingConfig", "TextStream", "generate"]
