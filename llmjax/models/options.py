"""Groups of options in a model's configuration."""

import dataclasses
from typing import Literal

from llmjax.checks import require_at_least, require_choices

Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "tanh"]


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Dropout rates in training.

    Attributes:
        embedding: of the embedded tokens.
        attention: of the attention weights.
        hidden: of the outputs of attention and MLP.
        classifier: of the inputs of output layers, except in heads lm and mlm.
    """

    embedding: float = 0.0
    attention: float = 0.0
    hidden: float = 0.0
    classifier: float = 0.0

    def __post_init__(self) -> None:
        for name, rate in dataclasses.asdict(self).items():
            if not 0.0 <= rate < 1.0:
                raise ValueError(f"dropout.{name}={rate}: a dropout rate must be in [0, 1)")


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """The pipeline schedule, on a mesh with several stages.

    With P stages, M micro-batches and V rounds, each device is idle for (P-1) / (V·M + P-1) of the
    time: more micro-batches or rounds reduce this.

    Attributes:
        microbatches: M, parts of the batch that follow each other through the stages, a multiple of
            P; 0 means 4·P, or the largest smaller number that the rows divide into.
        rounds: V, how often a micro-batch passes each stage, with 1/V of its layers each time
            (interleaved schedule, Narayanan et al. 2021, section 2.2); more rounds communicate
            more, and the backward pass holds the rounded weights of every step.
    """

    microbatches: int = 0
    rounds: int = 1

    def __post_init__(self) -> None:
        require_at_least(0, self, "pipeline", ("microbatches",))
        require_at_least(1, self, "pipeline", ("rounds",))


@dataclasses.dataclass(frozen=True)
class Embedding:
    """The input embedding.

    Attributes:
        dim: width of the tables, projected to D if they differ (ELECTRA); 0 means D.
        scaled: whether token embeddings are multiplied by √D (Vaswani et al. 2017, section 3.4).
        norm: whether a norm follows (BERT).
        token_types: number of token types with an embedding; 2 for BERT's sentence pairs.
        offset: row of the first token in the table of learned positions; 2 in RoBERTa.
    """

    dim: int = 0
    scaled: bool = False
    norm: bool = False
    token_types: int = 0
    offset: int = 0

    def __post_init__(self) -> None:
        require_at_least(0, self, "embedding", ("dim", "token_types", "offset"))


@dataclasses.dataclass(frozen=True)
class Attention:
    """Which tokens attend to which, and how scores are computed.

    Attributes:
        causal: whether a token only sees itself and earlier tokens.
        pattern: kinds of attention, repeated over the layers: global sees the whole sequence,
            local only tokens at a distance below the window.
        window: window of local layers, in tokens.
        scale_dim: scores are divided by its square root; 0 means C.
        cap: soft-caps scores to ±cap with tanh (Gemma 2); 0 disables it.
        qk_norm: RMSNorm of queries and keys, over each head's channels (head: Qwen3, Gemma 3) or
            over all heads together (width: OLMo 2).
    """

    causal: bool = True
    pattern: tuple[Literal["global", "local"], ...] = ("global",)
    window: int = 0
    scale_dim: int = 0
    cap: float = 0.0
    qk_norm: Literal["none", "head", "width"] = "none"

    def __post_init__(self) -> None:
        require_choices(self, "attention")
        require_at_least(0, self, "attention", ("window", "scale_dim", "cap"))
        unknown = [kind for kind in self.pattern if kind not in ("global", "local")]
        if unknown or not self.pattern:
            raise ValueError(
                f"attention.pattern={','.join(self.pattern)}: name one or more of global, local"
            )
        if "local" in self.pattern and not self.window:
            raise ValueError("attention.window=0: local layers need a window of at least 1")


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions (Su et al. 2021) of global and local layers.

    Attributes:
        theta: base of the wavelengths.
        local_theta: base in local layers; 0 means theta.
        scaling: how wavelengths of global layers are stretched for long sequences: linear, all by
            the factor (Chen et al. 2023); llama3, only those that are long for the original
            length, with a ramp between (the Llama team 2024).
        factor: by which wavelengths are stretched.
        low_frequency: for llama3: wavelengths above original_length over this are stretched.
        high_frequency: for llama3: wavelengths below original_length over this are unchanged.
        original_length: for llama3: the sequence length of the original training.
    """

    theta: float = 10000.0
    local_theta: float = 0.0
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    original_length: int = 8192

    def __post_init__(self) -> None:
        require_choices(self, "rope")
        for name in ("theta", "factor", "low_frequency", "high_frequency", "original_length"):
            if not getattr(self, name) > 0:
                raise ValueError(f"rope.{name}={getattr(self, name)}: must be above 0")
        require_at_least(0, self, "rope", ("local_theta",))
        if self.scaling == "none" and self.factor != 1.0:
            raise ValueError(
                f"rope.factor={self.factor}: nothing is stretched with rope.scaling=none; choose a "
                "scaling, or leave factor at 1"
            )
        if self.scaling == "llama3" and not self.high_frequency > self.low_frequency:
            raise ValueError(
                f"rope.high_frequency={self.high_frequency}: must be above "
                f"low_frequency={self.low_frequency}"
            )


@dataclasses.dataclass(frozen=True)
class Disentangled:
    """Disentangled attention to content and relative position (He et al. 2021, DeBERTa).

    Attributes:
        terms: score terms besides content-to-content: c2p, content to position, and p2c, position
            to content; none means ordinary attention.
        max_distance: largest relative position; larger ones are clipped to it.
        buckets: distinct relative positions on each side of 0, exact in the near half and
            logarithmic in the far half (DeBERTa v2); 0 keeps all max_distance distinct.
        shared: whether positions are projected with the content weights.
        norm: whether a LayerNorm follows the table of relative positions.
        convolution: width of the convolution beside the first layer (v2-xlarge); 0 for none.
        convolution_activation: activation after the convolution.
        mask_decoder: applications of the last layer in the enhanced mask decoder of an mlm head,
            which adds absolute positions (section 3.2; 2 there); 0 for none.
    """

    terms: tuple[Literal["c2p", "p2c"], ...] = ()
    max_distance: int = 512
    buckets: int = 0
    shared: bool = True
    norm: bool = False
    convolution: int = 0
    convolution_activation: Activation = "tanh"
    mask_decoder: int = 0

    def __post_init__(self) -> None:
        require_choices(self, "disentangled")
        require_at_least(0, self, "disentangled", ("buckets", "convolution", "mask_decoder"))
        require_at_least(1, self, "disentangled", ("max_distance",))
        if set(self.terms) - {"c2p", "p2c"} or len(set(self.terms)) < len(self.terms):
            raise ValueError(f"disentangled.terms={','.join(self.terms)}: name c2p, p2c or both")
        if self.convolution and self.convolution % 2 == 0:
            raise ValueError(f"disentangled.convolution={self.convolution}: the width must be odd")

    @property
    def span(self) -> int:
        """Distinct relative positions on each side of 0; the table has twice as many rows."""
        return self.buckets or self.max_distance


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of every MLP (Shazeer et al. 2017; Fedus et al. 2022).

    Attributes:
        count: E, experts of a layer; 0 for a plain MLP.
        per_token: experts that each token goes to.
        dim: width inside an expert; 0 means mlp_dim.
        normalized: whether the chosen experts' weights sum to one.
        balance: weight of the load-balancing loss.
        capacity: most tokens of a sequence that an expert takes in training, as a multiple of the
            mean; the rest skip it. 0 means no limit (GShard uses 2, Switch 1.25).
    """

    count: int = 0
    per_token: int = 2
    dim: int = 0
    normalized: bool = True
    balance: float = 0.001
    capacity: float = 0.0

    def __post_init__(self) -> None:
        require_at_least(0, self, "experts", ("count", "dim", "balance", "capacity"))
        if self.count and not 1 <= self.per_token <= self.count:
            raise ValueError(
                f"experts.per_token={self.per_token}: must be in [1, count={self.count}]"
            )


@dataclasses.dataclass(frozen=True)
class Head:
    """The output head.

    Attributes:
        kind: none; lm, the next token; mlm, masked tokens; rtd, whether a token was replaced;
            classification, a label per sequence; tokens, a label per token; span, start and end
            of an answer; reward, a number per sequence; value, a number per token.
        labels: N, number of labels for classification and tokens.
        pool: the token whose state represents a sequence, or the mean over its tokens.
        dense: whether a dense layer comes before the output.
        activation: of the dense layer.
        norm: whether a norm follows the dense layer.
        bias: whether the output layer has a bias.
        cap: soft-caps logits to ±cap with tanh (Gemma 2); 0 disables it.
        next_sentence: whether to keep BERT's pooler and next-sentence output; they are never
            trained, as they do not help (Liu et al. 2019, section 4.2).
    """

    kind: Literal[
        "none", "lm", "mlm", "rtd", "classification", "tokens", "span", "reward", "value"
    ] = "lm"
    labels: int = 2
    pool: Literal["first", "last", "mean"] = "last"
    dense: bool = False
    activation: Activation = "gelu"
    norm: bool = False
    bias: bool = False
    cap: float = 0.0
    next_sentence: bool = False

    def __post_init__(self) -> None:
        require_choices(self, "head")
        require_at_least(1, self, "head", ("labels",))
        require_at_least(0, self, "head", ("cap",))
        for name in ("dense", "bias", "next_sentence"):
            if self.kind == "lm" and getattr(self, name):
                raise ValueError(
                    f"head.{name}=True: a head of kind lm is only a table; choose kind mlm, or "
                    f"leave {name} unset"
                )
        if self.norm and not self.dense:
            raise ValueError("head.norm=True: the norm follows a dense layer; set head.dense")
