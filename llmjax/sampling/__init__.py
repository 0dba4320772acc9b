"""Text from models: samplers, and decoding on the device."""

from llmjax.sampling.decode import Generated, generate
from llmjax.sampling.samplers import SamplerConfig
from llmjax.sampling.stream import stream

__all__ = ["Generated", "SamplerConfig", "generate", "stream"]
