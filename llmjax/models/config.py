"""The model configuration."""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp

from llmjax import mesh
from llmjax.checks import require_at_least, require_choices
from llmjax.models.options import (
    Activation,
    Attention,
    Disentangled,
    Dropout,
    Embedding,
    Experts,
    Head,
    Pipeline,
    Rope,
)

Family = Literal[
    "gpt2",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gemma2",
    "gemma3_text",
    "olmo2",
    "bert",
    "roberta",
    "electra",
    "modernbert",
    "deberta-v2",
]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Configuration of a transformer, decoder or encoder.

    Attributes:
        family: the Hugging Face architecture whose weight names its checkpoints use.
        vocab_size: V, token ids.
        num_layers: L, blocks.
        embed_dim: D, width of the residual stream.
        num_heads: H, query heads.
        num_kv_heads: K, key and value heads, each shared by H/K query heads; 0 means H.
        head_dim: C, channels of a head; 0 means D/H.
        mlp_dim: F, width inside the MLP; 0 means 4·D.
        max_length: longest sequence; the table of learned positions has this many rows, plus the
            offset.
        embedding: options of the input embedding.
        position: learned position embeddings (GPT-2), rotary ones (Su et al. 2021), or none.
        rope: options of rotary positions.
        attention: options of attention.
        disentangled: options of DeBERTa's relative positions.
        norm: LayerNorm, RMSNorm (Zhang & Sennrich 2019), or rmsnorm1p, which stores scale - 1
            (Gemma).
        norm_order: norms before attention and MLP (pre, GPT-2), after the residual addition
            (post, BERT), before and after attention and MLP (both, Gemma 2), or only after them
            (output, OLMo 2).
        norm_epsilon: added to the variance.
        first_norm: whether the first layer's attention has a norm before it; ModernBERT's has
            none, as it follows the embedding's norm.
        activation: of the MLP; gelu_tanh is GPT-2's approximation.
        gated: whether a second projection gates the MLP: SwiGLU with silu (Shazeer 2020).
        experts: a mixture of experts in place of the MLP.
        bias: which projections have biases: none, qkv (Qwen2), or all, and LayerNorms too; experts
            have none.
        tied: whether the language-model head is the embedding table.
        head: the output head.
        dropout: dropout rates.
        init_std: standard deviation of initial weights; projections back into the residual
            stream use init_std / sqrt(2·L) (Radford et al. 2019, section 2.3).
        dtype: compute precision; auto is bfloat16 on TPU and GPU and float32 on CPU; float64 is
            for checking gradients.
        remat: what the backward pass recomputes: none; dots (all but products with weights
            and attention, for less memory at the same speed); full (all but the blocks' inputs).
        scan_layers: whether layers run as one compiled loop (short compile) or unrolled (10-20 %
            faster on CPU).
        pipeline: the pipeline schedule on a mesh with several stages.
    """

    family: Family
    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int = 0
    head_dim: int = 0
    mlp_dim: int = 0
    max_length: int = 1024
    embedding: Embedding = Embedding()
    position: Literal["learned", "rope", "none"] = "rope"
    rope: Rope = Rope()
    attention: Attention = Attention()
    disentangled: Disentangled = Disentangled()
    norm: Literal["layernorm", "rmsnorm", "rmsnorm1p"] = "rmsnorm"
    norm_order: Literal["pre", "post", "both", "output"] = "pre"
    norm_epsilon: float = 1e-5
    first_norm: bool = True
    activation: Activation = "silu"
    gated: bool = True
    experts: Experts = Experts()
    bias: Literal["none", "qkv", "all"] = "none"
    tied: bool = False
    head: Head = Head()
    dropout: Dropout = Dropout()
    init_std: float = 0.02
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    remat: Literal["none", "dots", "full"] = "none"
    scan_layers: bool = True
    pipeline: Pipeline = Pipeline()

    def __post_init__(self) -> None:
        require_choices(self, "model")
        sizes = ("vocab_size", "num_layers", "embed_dim", "num_heads", "max_length")
        require_at_least(1, self, "model", sizes)
        require_at_least(0, self, "model", ("num_kv_heads", "head_dim", "mlp_dim", "init_std"))
        if not self.norm_epsilon > 0:
            raise ValueError(f"model.norm_epsilon={self.norm_epsilon}: must be above 0")
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
        self._check_layers()
        if self.experts.count and not self.gated:
            raise ValueError("model.gated=False: experts are gated MLPs; set it to True")
        self._check_disentangled()

    def _check_layers(self) -> None:
        different = not self.first_norm or self.disentangled.convolution
        if self.scan_layers and different:
            raise ValueError(
                "model.scan_layers=True: the first layer differs from the others (first_norm or "
                "disentangled.convolution), so layers cannot be stacked; set it to False"
            )
        if not self.first_norm and self.norm_order != "pre":
            raise ValueError(
                f"model.first_norm=False: with norm_order={self.norm_order} no norm comes first"
            )

    def _check_disentangled(self) -> None:
        if not self.disentangled.terms:
            for name in ("convolution", "mask_decoder"):
                if getattr(self.disentangled, name):
                    raise ValueError(f"model.disentangled.{name} needs disentangled.terms")
            return
        if self.attention.causal or self.position == "rope" or self.kv_heads != self.num_heads:
            raise ValueError(
                "model.disentangled.terms: disentangled attention is bidirectional, without rotary "
                "positions and without shared key heads"
            )

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
    def table_dim(self) -> int:
        """Width of the embedding tables."""
        return self.embedding.dim or self.embed_dim

    @property
    def expert_dim(self) -> int:
        """Width inside an expert."""
        return self.experts.dim or self.hidden_dim

    @property
    def scale_dim(self) -> int:
        """Attention scores are divided by the square root of this."""
        return self.attention.scale_dim or self.channels

    @property
    def score_scale(self) -> float:
        """The factor on attention scores: 1 / √(`scale_dim` · terms of the score)."""
        terms = 1 + len(self.disentangled.terms)
        return 1 / math.sqrt(self.scale_dim * terms)

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The precision of activations on the current mesh's devices."""
        if self.dtype == "auto":
            on_cpu = mesh.platform() == "cpu"
            return jnp.dtype(jnp.float32 if on_cpu else jnp.bfloat16)
        return jnp.dtype(self.dtype)
