"""Named models, objectives and batch shapes to benchmark, on random tokens without dropout."""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal

from llmjax import models, objectives, planning
from llmjax.objectives import masking
from llmjax.optim.config import OptimizerConfig
from llmjax.spec import Tree

# [PAD], [CLS] and [SEP] in the published vocabulary of BERT and ELECTRA.
BERT_VOCABULARY = 30522
MASK_ID = 103
SPECIAL_IDS = (0, 101, 102)


@dataclasses.dataclass(frozen=True)
class Settings:
    """A model, its objective, and a batch.

    Attributes:
        objective: clm, the next token; mlm, masked tokens; rtd, replaced tokens.
        model: the network; for rtd, the discriminator.
        batch_size: B.
        sequence_length: S.
        generator: rtd's generator, which shares the discriminator's embeddings.
        optimizer: the optimizer.
        steps: length of the schedule.
        seed: seed of parameters and masks.
    """

    objective: Literal["clm", "mlm", "rtd"]
    model: models.ModelConfig
    batch_size: int
    sequence_length: int
    generator: models.ModelConfig | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    steps: int = 1000
    seed: int = 0

    @property
    def masking(self) -> masking.MaskingConfig:
        """How mlm and rtd mask tokens."""
        return masking.ELECTRA if self.objective == "rtd" else masking.BERT

    @property
    def spec(self) -> Tree:
        """All trained parameters."""
        if self.generator is not None:
            return objectives.rtd_spec(self.generator, self.model)
        return models.spec(self.model)

    @property
    def loss(self) -> objectives.Loss:
        """The loss, a function of the parameters that `spec` declares and a batch."""
        if self.objective == "clm":
            return objectives.clm(self.model)
        hidden: dict[str, Any] = {"mask_id": MASK_ID, "special_ids": SPECIAL_IDS}
        if self.generator is not None:
            return objectives.rtd(self.generator, self.model, self.masking, **hidden)
        return objectives.mlm(self.model, self.masking, **hidden)

    @property
    def training_flops(self) -> float:
        """FLOPs of a training step, as `llmjax.planning` counts them."""
        length = self.sequence_length
        if self.generator is not None:
            per_token = planning.rtd_flops(self.generator, self.model, length, self.masking)
        elif self.objective == "mlm":
            per_token = planning.mlm_flops(self.model, length, self.masking)
        else:
            per_token = planning.training_flops(self.model, length)
        return self.batch_size * length * per_token


def mlm() -> Settings:
    """BERT with 6 layers of width 384, on batches of 16 × 128."""
    return Settings("mlm", models.bert(**_ENCODER), batch_size=16, sequence_length=128)


def rtd() -> Settings:
    """ELECTRA: the encoder of `mlm` as discriminator, and a generator of a quarter of its width."""
    return _rtd(_ENCODER, batch_size=16, sequence_length=128)


def policy() -> Settings:
    """A decoder with 4 layers of width 256 as policy."""
    model = models.llama(
        **_PLAIN,
        vocab_size=8192,
        num_layers=4,
        embed_dim=256,
        num_heads=4,
        mlp_dim=704,
        max_length=512,
        tied=True,
    )
    return Settings("clm", model, batch_size=16, sequence_length=96)


def tiny_mlm() -> Settings:
    """A tiny model for smoke tests."""
    return Settings("mlm", models.bert(**_TINY), batch_size=8, sequence_length=32)


def tiny_rtd() -> Settings:
    """Likewise."""
    return _rtd(_TINY, batch_size=8, sequence_length=32)


def gpt2_small() -> Settings:
    """GPT-2 small on batches of 16 × 1024, for one accelerator."""
    model = models.gpt2(
        **_BASE,
        # The published 50257 rounded up, as is common: matrices of odd sizes are slow.
        vocab_size=50304,
        max_length=1024,
    )
    return Settings("clm", model, batch_size=16, sequence_length=1024)


def bert_base() -> Settings:
    """BERT base on batches of 32 × 512, for one accelerator."""
    model = models.bert(**_BASE, vocab_size=BERT_VOCABULARY, max_length=512)
    return Settings("mlm", model, batch_size=32, sequence_length=512)


def _rtd(encoder: dict[str, Any], batch_size: int, sequence_length: int) -> Settings:
    """The generator by the rules of Clark et al. (2020), section 3.2, and the code they released.

    It has as many layers as the discriminator, a quarter of its width, heads of 64 channels, and
    embeddings as wide as the discriminator's.
    """
    width = encoder["embed_dim"] // 4
    smaller = encoder | {
        "embed_dim": width,
        "mlp_dim": 4 * width,
        "num_heads": max(1, width // 64),
        "embedding": models.Embedding(norm=True, token_types=2, dim=encoder["embed_dim"]),
    }
    generator = models.with_head(models.electra(**smaller), "mlm")
    return Settings(
        "rtd", models.electra(**encoder), batch_size, sequence_length, generator=generator
    )


def _recipe(name: str) -> Settings:
    """The shapes of a recipe."""
    # Recipes import the data pipeline, whose packages a machine that only times training may lack.
    from experiments.recipes import RECIPES

    recipe = RECIPES[name]()
    return Settings(
        "clm",
        recipe.model,
        recipe.batch_size,
        recipe.sequence_length,
        optimizer=recipe.optimizer,
        steps=recipe.steps,
        seed=recipe.seed,
    )


_PLAIN: dict[str, Any] = {"dropout": models.Dropout(), "remat": "dots", "scan_layers": False}
_ENCODER = _PLAIN | {
    "vocab_size": BERT_VOCABULARY,
    "num_layers": 6,
    "embed_dim": 384,
    "num_heads": 6,
    "mlp_dim": 1536,
    "max_length": 128,
}
_TINY = _ENCODER | {
    "vocab_size": 512,
    "num_layers": 2,
    "embed_dim": 64,
    "num_heads": 2,
    "mlp_dim": 256,
    "max_length": 32,
}
_BASE = _PLAIN | {"num_layers": 12, "embed_dim": 768, "num_heads": 12}

SETTINGS: Mapping[str, Callable[[], Settings]] = types.MappingProxyType(
    {make.__name__: make for make in (mlm, rtd, policy, tiny_mlm, tiny_rtd, gpt2_small, bert_base)}
)


def named(name: str) -> Settings:
    """The settings by name, from `SETTINGS` or from a recipe."""
    return SETTINGS[name]() if name in SETTINGS else _recipe(name)
