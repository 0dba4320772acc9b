"""Tables that map each family's config.json to `ModelConfig`."""

from llmjax.hf.families import decoders, encoders
from llmjax.hf.families.family import REQUIRED, SUFFIXES, Family

__all__ = ["FAMILIES", "REQUIRED", "SUFFIXES", "Family"]

FAMILIES = decoders.FAMILIES | encoders.FAMILIES
