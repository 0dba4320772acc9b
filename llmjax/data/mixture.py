"""Shares of sources in training: proportions, temperature and caps, as pure functions."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from llmjax.data.shards import Manifest


@dataclasses.dataclass(frozen=True)
class MixtureConfig:
    """How weights and sizes of sources become shares of the training tokens.

    Attributes:
        by: `weights`: shares are proportional to `Source.weight`, regardless of size; `tokens`:
            shares are proportional to the source's tokens times its weight, which then acts as a
            relative number of epochs (2.0: two epochs in the time of one).
        temperature: T in shares^(1/T): 1 keeps the shares, larger values make them more equal.
        max_epochs: maximum number of passes over a source; the excess goes to the others. 0 for no
            limit; repetition begins to cost at 4 (Muennighoff 2023).
    """

    by: Literal["weights", "tokens"] = "weights"
    temperature: float = 1.0
    max_epochs: float = 0.0

    def __post_init__(self) -> None:
        if self.by not in ("weights", "tokens"):
            raise ValueError(f"MixtureConfig.by is {self.by!r}: use 'weights' or 'tokens'.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"MixtureConfig.temperature is {self.temperature}: use a number above 0."
            )
        if not 0 <= self.max_epochs < math.inf:
            raise ValueError(
                f"MixtureConfig.max_epochs is {self.max_epochs}: use a number, 0 or more."
            )


def weights(
    manifest: "Manifest",
    settings: MixtureConfig,
    tokens: float | None = None,
    *,
    examples: float | None = None,
) -> dict[str, float]:
    """The sources' shares of the training tokens of prepared data, for the loader's `weights`.

    Args:
        manifest: the data's manifest, with each source's weight and tokens.
        settings: how these become shares.
        tokens: number of training tokens, needed for `max_epochs`,
        examples: or the number of examples, if each is a row or a prompt of any length.

    Raises:
        ValueError: no source has a share, or there is too little text for `max_epochs`.
    """
    by_name = {source.name: source for source in manifest.sources}
    sizes = {name: float(source.train.tokens) for name, source in by_name.items()}
    given = {name: source.weight for name, source in by_name.items()}
    if examples is None or not settings.max_epochs:
        return shares(given, sizes, settings, tokens)
    # Dividing shares of tokens by the mean length of an example gives shares of examples. The cap
    # on passes holds for both, and keeps the proportions of the other sources.
    free = shares(given, sizes, dataclasses.replace(settings, max_epochs=0.0))
    counts = {name: float(source.train.documents) for name, source in by_name.items()}
    drawn = {name: p and p * counts[name] / sizes[name] for name, p in free.items()}
    capped = shares(
        drawn, counts, MixtureConfig(max_epochs=settings.max_epochs), examples, unit="examples"
    )
    return _normalised({n: p and p * sizes[n] / counts[n] for n, p in capped.items()}, 1.0)


def shares(
    weights: Mapping[str, float],
    sizes: Mapping[str, float],
    settings: MixtureConfig = MixtureConfig(),
    tokens: float | None = None,
    *,
    unit: str = "tokens",
) -> dict[str, float]:
    """Each source's share of the training tokens; they sum to 1.

    With q_i = w_i, or w_i · n_i by tokens, p_i = q_i^(1/T) / Σ q_j^(1/T). T = 1 keeps the
    proportions, T → ∞ makes them equal (Arivazhagan et al. 2019, section 4.2, arXiv:1907.05019).
    Then `max_epochs` caps each source, p_i ≤ E · n_i / D, and the excess goes to the others in
    proportion.

    Args:
        weights: w_i; 0 leaves a source out.
        sizes: n_i, tokens of each source.
        settings: proportions, temperature and cap.
        tokens: D; needed only for the cap.
        unit: unit of sizes and D, for messages.

    Raises:
        ValueError: no source has a share, or E epochs of all sources are fewer than D tokens.
    """
    by_tokens = settings.by == "tokens"
    rough = {n: w * (sizes[n] if by_tokens else 1.0) for n, w in weights.items() if w > 0}
    largest = max(rough.values(), default=0.0)
    if not largest:
        raise ValueError(f"no source of {sorted(weights)} has both weight and text: add some.")
    powers = {n: (q / largest) ** (1 / settings.temperature) for n, q in rough.items() if q > 0}
    found = _normalised(powers, 1.0)
    if settings.max_epochs and tokens is None:
        raise ValueError(f"max_epochs caps sources by the {unit} of the training: say how many.")
    if settings.max_epochs:
        caps = {name: settings.max_epochs * sizes[name] / float(tokens or 1) for name in found}
        if sum(caps.values()) < 1 - 1e-9:  # rounding, if all sources are read to the end
            raise ValueError(
                f"max_epochs={settings.max_epochs:g} of all sources are "
                f"{sum(caps.values()) * float(tokens or 0):.3g} {unit}, but the training reads "
                f"{float(tokens or 0):.3g}: raise it, train on less, or add text."
            )
        found = _capped(found, caps)
    return {name: found.get(name, 0.0) for name in weights}


def epochs(
    shares: Mapping[str, float], sizes: Mapping[str, float], tokens: float
) -> dict[str, float]:
    """How often a training run of `tokens` tokens reads each source: p_i · D / n_i."""
    return {
        name: share * tokens / sizes[name] if sizes[name] else math.inf if share else 0.0
        for name, share in shares.items()
    }


def _capped(wanted: dict[str, float], caps: Mapping[str, float]) -> dict[str, float]:
    """Shares within their caps, in proportion to the wanted ones where no cap holds."""
    held: dict[str, float] = {}
    while True:
        free = {name: share for name, share in wanted.items() if name not in held}
        found = _normalised(free, max(1 - sum(held.values()), 0.0)) if free else {}
        over = {name: caps[name] for name, share in found.items() if share > caps[name]}
        if not over:
            return held | found
        held |= over


def _normalised(values: Mapping[str, float], total: float) -> dict[str, float]:
    scale = total / sum(values.values())
    return {name: value * scale for name, value in values.items()}
