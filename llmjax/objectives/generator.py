"""The generator of replaced-token detection, derived from its discriminator."""

import dataclasses

from llmjax import models
from llmjax.checks import require_choices
from llmjax.objectives.rtd import Sharing


@dataclasses.dataclass(frozen=True)
class ReplacementConfig:
    """The generator's size and sharing, and the weight of the discriminator's loss.

    Attributes:
        width_share: the generator's heads and widths as a share of the discriminator's; a quarter
            to a half works best (Clark et al. 2020, section 3.2), DeBERTa v3 uses all.
        layers_share: the generator's layers as a share of the discriminator's; DeBERTa v3 uses
            half.
        sharing: sharing of embeddings: none, tied (Clark et al. 2020, section 3.2), or disentangled
            (He et al. 2023, section 3.3).
        weight: weight of the discriminator's loss.
    """

    width_share: float = 1 / 3
    layers_share: float = 1.0
    sharing: Sharing = "tied"
    weight: float = 50.0

    def __post_init__(self) -> None:
        require_choices(self, "replacement")
        for name in ("width_share", "layers_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"replacement.{name}={getattr(self, name)}: must be in (0, 1], a share of the "
                    "discriminator's"
                )
        if not self.weight > 0:
            raise ValueError(f"replacement.weight={self.weight}: must be above 0 (50 is usual)")


def generator_config(
    discriminator: models.ModelConfig, width_share: float, layers_share: float = 1.0
) -> models.ModelConfig:
    """A smaller version of the discriminator with a head of kind mlm (Clark et al. 2020, table 6).

    Heads keep their channels, so the width is the nearest one with a whole number of heads, at
    least one: a third of 12 heads is 4, and D and F become a third too. Embedding tables keep the
    discriminator's width and are projected, so that they can be shared; the output is tied to them.

    Args:
        discriminator: its configuration.
        width_share: share of heads, D and F, in (0, 1].
        layers_share: share of layers, in (0, 1]; at least one remains.

    Raises:
        ValueError: the family has no head of kind mlm.
    """
    groups = max(1, round(discriminator.kv_heads * width_share))
    whole = discriminator.kv_heads

    def scaled(size: int) -> int:
        return size * groups // whole

    width = scaled(discriminator.embed_dim)
    table = discriminator.table_dim
    smaller = dataclasses.replace(
        discriminator,
        num_layers=max(1, round(discriminator.num_layers * layers_share)),
        embed_dim=width,
        num_heads=scaled(discriminator.num_heads),
        num_kv_heads=scaled(discriminator.num_kv_heads),
        mlp_dim=scaled(discriminator.mlp_dim),
        embedding=dataclasses.replace(discriminator.embedding, dim=0 if table == width else table),
        experts=dataclasses.replace(discriminator.experts, dim=scaled(discriminator.experts.dim)),
        tied=True,
    )
    return models.with_head(smaller, "mlm")
