"""DeBERTa's disentangled attention to content and relative position."""

from llmjax.kernels.disentangled_attention.api import disentangled_attention

__all__ = ["disentangled_attention"]
