"""What a model is made of."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from llmjax.checks import require_choices


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Shares of activations that training drops, by place.

    Attributes:
        embedding: of the embedded tokens.
        attention: of the attention weights.
        hidden: of what attention and MLP add to the residual stream.
        classifier: of the pooled state before a sequence head.
    """

    embedding: float = 0.0
    attention: float = 0.0
    hidden: float = 0.0
    classifier: float = 0.0

    def __post_init__(self) -> None:
        for name, rate in dataclasses.asdict(self).items():
            if not 0.0 <= rate < 1.0:
                raise ValueError(f"dropout.{name}={rate}: a share dropped is in [0, 1)")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer.

    Attributes:
        family: whose names its weights have in Hugging Face checkpoints.
        vocab_size: V, token ids.
        num_layers: L, blocks.
        embed_dim: D, width of the residual stream.
        num_heads: H, query heads.
        num_kv_heads: K, key and value heads, each shared by H/K query heads; 0 means H.
        head_dim: C, channels of a head; 0 means D/H.
        mlp_dim: F, width inside the MLP; 0 means 4·D.
        max_length: longest sequence; learned positions have this many rows.
        position: learned position embeddings (GPT-2), or rotary ones (Su et al. 2021).
        rope_theta: base of the rotary wavelengths.
        norm: LayerNorm, or RMSNorm (Zhang & Sennrich 2019).
        norm_epsilon: added to the variance.
        activation: of the MLP; gelu_tanh is GPT-2's approximation.
        gated: whether a second projection gates the MLP: SwiGLU with silu (Shazeer 2020).
        bias: whether projections have biases, and LayerNorms too.
        tied: whether the language-model head is the embedding table.
        dropout: shares dropped in training.
        init_std: standard deviation of initial weights; projections back into the residual
            stream have init_std / sqrt(2·L) (Radford et al. 2019, section 2.3).
        dtype: compute precision; auto is bfloat16 on TPU and GPU and float32 on CPU; float64 is
            for checking gradients.
        remat: what the backward pass computes again: none; dots (all but products with weights
            and attention, for less memory at the same speed); full (all but the blocks' inputs).
        scan_layers: whether layers run as one compiled loop (short compile) or unrolled (10-20 %
            faster on CPU).
    """

    family: Literal["gpt2", "llama"]
    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int = 0
    head_dim: int = 0
    mlp_dim: int = 0
    max_length: int = 1024
    position: Literal["learned", "rope"] = "rope"
    rope_theta: float = 10000.0
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    norm_epsilon: float = 1e-5
    activation: Literal["gelu", "gelu_tanh", "silu"] = "silu"
    gated: bool = True
    bias: bool = False
    tied: bool = False
    dropout: Dropout = Dropout()
    init_std: float = 0.02
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    remat: Literal["none", "dots", "full"] = "none"
    scan_layers: bool = True

    def __post_init__(self) -> None:
        require_choices(self, "model")
        for name in ("vocab_size", "num_layers", "embed_dim", "num_heads", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}: must be at least 1")
        for name in ("num_kv_heads", "head_dim", "mlp_dim", "init_std"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name}={getattr(self, name)}: must not be negative")
        for name in ("norm_epsilon", "rope_theta"):
            if not getattr(self, name) > 0:
                raise ValueError(f"model.{name}={getattr(self, name)}: must be above 0")
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"model.num_heads={self.num_heads} is not a multiple of "
                f"num_kv_heads={self.num_kv_heads}"
            )
        if not self.head_dim and self.embed_dim % self.num_heads:
            raise ValueError(
                f"model.embed_dim={self.embed_dim} is not a multiple of "
                f"num_heads={self.num_heads}: set head_dim, or choose sizes that divide"
            )
        if self.position == "rope" and self.channels % 2:
            raise ValueError(f"model.head_dim={self.channels}: rotary positions need an even one")

    @property
    def kv_heads(self) -> int:
        """K."""
        return self.num_kv_heads or self.num_heads

    @property
    def channels(self) -> int:
        """C."""
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def hidden_dim(self) -> int:
        """F."""
        return self.mlp_dim or 4 * self.embed_dim

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The precision of activations on the default device."""
        if self.dtype == "auto":
            on_cpu = jax.default_backend() == "cpu"
            return jnp.dtype(jnp.float32 if on_cpu else jnp.bfloat16)
        return jnp.dtype(self.dtype)
