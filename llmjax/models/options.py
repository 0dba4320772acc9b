"""The parts of a model's configuration."""

import dataclasses
from typing import Literal

from llmjax.checks import require_at_least, require_choices

Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "tanh"]


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Shares of activations that training drops, by place.

    Attributes:
        embedding: of the embedded tokens.
        attention: of the attention weights.
        hidden: of what attention and MLP add to the residual stream.
        classifier: of what the output of a head other than a language model's reads.
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
class Pipeline:
    """How layers run in stages, on a mesh that has several.

    With P stages, M micro-batches and V rounds each device waits for (P-1) / (V·M + P-1) of the
    time: more of either shortens that.

    Attributes:
        microbatches: M, parts of the batch that follow each other through the stages, a multiple of
            P; 0 means 4·P, or the most below it that the rows divide into.
        rounds: V, how often a micro-batch passes each stage, with 1/V of its layers each time
            (interleaved schedule, Narayanan et al. 2021, section 2.2); more rounds talk more, and
            the backward pass holds the rounded weights of every step.
    """

    microbatches: int = 0
    rounds: int = 1

    def __post_init__(self) -> None:
        require_at_least(0, self, "pipeline", ("microbatches",))
        require_at_least(1, self, "pipeline", ("rounds",))


@dataclasses.dataclass(frozen=True)
class Embedding:
    """From tokens to the residual stream.

    Attributes:
        dim: width of the tables, projected to D where it is another (ELECTRA); 0 means D.
        scaled: whether token embeddings are multiplied by √D (Vaswani et al. 2017, section 3.4).
        norm: whether a norm follows (BERT).
        token_types: how many kinds of token have an embedding: BERT's two sentences.
        offset: row of the learned positions that the first token has; RoBERTa's is 2.
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
    """Who attends to whom, and how scores are formed.

    Attributes:
        causal: whether a token sees itself and what is before it only.
        pattern: kinds of attention, repeated over the layers: global sees the whole sequence,
            local only tokens at a distance below the window.
        window: of local layers.
        scale_dim: scores are divided by its square root; 0 means C.
        cap: scores are bent into ±cap by a hyperbolic tangent (Gemma 2); 0 leaves them.
        qk_norm: RMSNorm of queries and keys: over a head's channels (Qwen3, Gemma 3), or all
            heads' together (OLMo 2).
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
    """Rotary positions (Su et al. 2021), of global layers and of local ones.

    Attributes:
        theta: base of the wavelengths.
        local_theta: base of local layers'; 0 means theta.
        scaling: how global layers' wavelengths are stretched for long sequences: linear, all by
            the factor (Chen et al. 2023); llama3, only those that are long for the original
            length, with a ramp between (the Llama team 2024).
        factor: of the stretching.
        low_frequency: of llama3: wavelengths above original_length over this are stretched.
        high_frequency: of llama3: wavelengths below original_length over this are left.
        original_length: of llama3: the length that the model was first trained for.
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
        if self.scaling == "llama3" and not self.high_frequency > self.low_frequency:
            raise ValueError(
                f"rope.high_frequency={self.high_frequency}: must be above "
                f"low_frequency={self.low_frequency}"
            )


@dataclasses.dataclass(frozen=True)
class Disentangled:
    """Disentangled attention to content and relative position (He et al. 2021, DeBERTa).

    Attributes:
        terms: of scores besides content-to-content: c2p, content to position, and p2c, position
            to content; none means ordinary attention.
        max_distance: farthest relative position; farther ones are taken for it.
        buckets: relative positions on each side of 0 that are told apart, the near half exactly
            and the far half by logarithm (DeBERTa v2); 0 tells all max_distance apart.
        shared: whether positions are projected by the content's weights.
        norm: whether a LayerNorm follows the table of relative positions.
        convolution: width of the convolution beside the first layer (v2-xlarge); 0 has none.
        convolution_activation: behind the convolution.
        mask_decoder: applications of the last layer in the enhanced mask decoder of an mlm head,
            which brings absolute positions in (section 3.2; 2 there); 0 has none.
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
            raise ValueError(
                f"disentangled.convolution={self.convolution}: an odd width has a middle"
            )

    @property
    def span(self) -> int:
        """Relative positions told apart on each side of 0; the table has twice as many rows."""
        return self.buckets or self.max_distance


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of every MLP (Shazeer et al. 2017; Fedus et al. 2022).

    Attributes:
        count: E, experts of a layer; 0 has a plain MLP.
        per_token: experts that each token goes to.
        dim: width inside an expert; 0 means mlp_dim.
        normalized: whether the chosen experts' weights sum to one.
        balance: weight of the load-balancing loss.
        capacity: how many times an expert's mean number of tokens it takes of a sequence in
            training; others pass it by. 0 drops none (GShard's 2, Switch's 1.25).
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
    """What is read off the hidden states.

    Attributes:
        kind: none; lm, the next token; mlm, masked tokens; rtd, whether a token was replaced;
            classification, a label for a sequence; tokens, a label for each token; span, where
            an answer starts and ends; reward, a number for a sequence; value, one for each token.
        labels: N, of classification and tokens.
        pool: the token whose state stands for a sequence, or the mean over its tokens.
        dense: whether a dense layer comes before the output.
        activation: of the dense layer.
        norm: whether a norm follows the dense layer.
        bias: whether the output has one.
        cap: logits are bent into ±cap by a hyperbolic tangent (Gemma 2); 0 leaves them.
        next_sentence: whether BERT's pooler and next-sentence output are there too; they are
            kept and never trained, as they do not help (Liu et al. 2019, section 4.2).
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
                    f"head.{name}=True: a head of kind lm is a table and nothing else; choose kind "
                    "mlm or leave it out"
                )
        if self.norm and not self.dense:
            raise ValueError("head.norm=True: the norm follows a dense layer; set head.dense")
