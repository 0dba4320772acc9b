"""Sampling text from models: samplers, and decoding on the device with continuous batching."""

from llmjax.sampling.generate import Generated, generate
from llmjax.sampling.rollouts import rollouts
from llmjax.sampling.samplers import SamplerConfig
from llmjax.sampling.slots import Rollout
from llmjax.sampling.stream import stream
from llmjax.sampling.text import text_of, until

__all__ = [
    "Generated",
    "Rollout",
    "SamplerConfig",
    "generate",
    "rollouts",
    "stream",
    "text_of",
    "until",
]
