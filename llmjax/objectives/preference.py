"""Preference losses without a reward model: DPO and its variants."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from llmjax import models
from llmjax.checks import require_at_least, require_choices
from llmjax.objectives.balance import add_balance
from llmjax.objectives.comparison import Pairs, differences, require_segments
from llmjax.objectives.log_probs import log_probs, require_language_model
from llmjax.objectives.loss import Batch, Loss, MeasuredLoss, Metrics, Params, Weighted
from llmjax.objectives.segments import segment_sums

Reference = Callable[[Params], Params]


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
    """The loss, a function of log π(y) and log π_ref(y), log-probabilities of whole responses.

    With h = log π(y) - log π_ref(y), for a better response w and a worse response l:

    - dpo: -log σ(β (h_w - h_l)) (Rafailov et al. 2023, equation 7).
    - ipo: (h_w - h_l - 1/(2β))² (Azar et al. 2023, equation 17).
    - simpo: -log σ(β (m_w - m_l) - γ), with the mean m = log π(y) / |y| (Meng et al. 2024, equation
      6); no reference.
    - orpo: -m_w - β log σ(log odds(m_w) - log odds(m_l)), with odds(m) = e^m / (1 - e^m) (Hong et
      al. 2024, equations 6 and 7); no reference.
    - kto: λ_D (1 - σ(β (h - z))) for a desirable response, λ_U (1 - σ(β (z - h))) for an
      undesirable one, where z, at least 0, is the mean h of responses to other prompts, without a
      gradient (Ethayarajh et al. 2024, equation 8). Responses need no pairs.

    Attributes:
        kind: the loss.
        beta: β: 0.1 is usual for dpo, ipo, kto and orpo, and 2 for simpo.
        label_smoothing: assumed share of pairs with the wrong order, for dpo (Mitchell 2023,
            conservative DPO).
        average: whether dpo and ipo use log-probabilities per token, h / |y| (length-normalized
            DPO: Lambert et al. 2024, section 5).
        gamma: γ of simpo.
        desirable: λ_D.
        undesirable: λ_U.
        sft: weight of -m_w, added to a pair's loss (Pang et al. 2024, equation 2); orpo includes
            it.
    """

    kind: Literal["dpo", "ipo", "kto", "orpo", "simpo"] = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0
    average: bool = False
    gamma: float = 1.0
    desirable: float = 1.0
    undesirable: float = 1.0
    sft: float = 0.0

    def __post_init__(self) -> None:
        require_choices(self, "preference")
        require_at_least(0, self, "preference", ("gamma", "desirable", "undesirable", "sft"))
        if not self.beta > 0:
            raise ValueError(f"preference.beta={self.beta}: must be above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"preference.label_smoothing={self.label_smoothing}: must be in [0, 0.5)"
            )
        only = {
            "label_smoothing": ("dpo",),
            "average": ("dpo", "ipo"),
            "sft": ("dpo", "ipo", "simpo"),
            "gamma": ("simpo",),
            "desirable": ("kto",),
            "undesirable": ("kto",),
        }
        for name, kinds in only.items():
            given = getattr(self, name) != getattr(PreferenceConfig, name)
            if given and self.kind not in kinds:
                raise ValueError(
                    f"preference.{name}={getattr(self, name)}: only for {', '.join(kinds)}, not "
                    f"{self.kind}; leave it out"
                )

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads a reference model."""
        return self.kind in ("dpo", "ipo", "kto")


def preference(
    config: models.ModelConfig,
    settings: PreferenceConfig,
    *,
    reference: Reference | None = None,
    responses: int = 2,
) -> Loss:
    """The loss of comparisons for a language model; see `PreferenceConfig` for the formulas.

    Args:
        config: model configuration.
        settings: the loss and its coefficients.
        reference: (params) to the reference model's parameters, a part of the trained or frozen
            ones; no gradient flows into them. None if the batch has its log-probabilities.
        responses: K, the maximum per row. A row's loss is the mean over its pairs.

    Returns:
        A loss over batches with int32 [B, S] "tokens", "targets" (the responses' tokens, else -1),
        "segment_ids" (0: padding; 1 to K: the responses with their prompts, best first), and
        optionally "positions"; without `reference`, float32 [B, S] "reference_log_probs" of the
        targets, for losses that need them. Its weight is the number of rows with a pair. Its
        metrics are means over pairs: "accuracy", "margin", "chosen" and "rejected" for the implicit
        rewards, β h (β m without a reference), and the responses' log-probabilities
        "chosen_log_prob" and "rejected_log_prob".

        For kto, a row has one response (segment 1); for z, the same prompt with a response to
        another prompt (segment 2); and "labels" int32 [B]: 1 desirable, 0 undesirable, -1 none. The
        weight is the number of labels. z is the mean over the second segments of the batch, which a
        step measures in a pass of its own if it splits the batch; rows without one do not count,
        and z is 0 if no row has one. The metrics are "kl", which is z; "desirable", the share of
        such rows; and "chosen" and "rejected", the summed rewards of desirable and undesirable
        rows, both divided by the total number of labels.

    Raises:
        ValueError: the model has another head or is bidirectional; the batch lacks an array.
    """
    require_language_model(f"preference.kind={settings.kind}", config)
    scored = functools.partial(
        _scored, config=config, settings=settings, reference=reference, responses=responses
    )

    def of_pairs(params, batch: Batch, key):
        scores, routing = scored(params, batch, key)
        return add_balance(*pair_loss(scores, settings), routing, config)

    def of_labels(params, batch: Batch, key, unrelated):
        scores, routing = scored(params, batch, key)
        found = kto_loss(scores, jnp.asarray(batch["labels"]), settings, unrelated)
        return add_balance(*found, routing, config)

    def measure(params, batch: Batch):
        return unrelated_ratios(scored(params, batch, None)[0], jnp.asarray(batch["labels"]))

    return MeasuredLoss(measure, of_labels) if settings.kind == "kto" else of_pairs


def _scored(
    params: Params,
    batch: Batch,
    key: jax.Array | None,
    *,
    config: models.ModelConfig,
    settings: PreferenceConfig,
    reference: Reference | None,
    responses: int,
) -> "tuple[Scores, models.Routing | None]":
    """The log-probabilities of a batch's responses, and the routing of its tokens."""
    segment_ids = require_segments("preference", batch, responses)
    _require(batch, settings, reference)
    found = log_probs(params, batch, config, key)

    def sums(values):
        return segment_sums(values, segment_ids, responses)

    lengths = sums((batch["targets"] >= 0).astype(found.targets.dtype))
    scores = Scores(sums(found.targets), None, lengths)
    if settings.needs_reference:
        of_reference = _reference_log_probs(params, batch, config, reference)
        scores = scores._replace(reference=sums(of_reference))
    return scores, found.output.routing


def _require(batch: Batch, settings: PreferenceConfig, reference: Reference | None) -> None:
    """Raises ValueError if the batch lacks an array that the loss reads."""
    if settings.kind == "kto" and "labels" not in batch:
        raise ValueError(
            'preference.kind=kto: the batch has no "labels" [B]: 1 desirable, 0 not, -1 none'
        )
    if settings.needs_reference and reference is None and "reference_log_probs" not in batch:
        raise ValueError(
            'preference: the batch has no "reference_log_probs" [B, S], and no `reference` is '
            "given; pass one of them, or choose orpo or simpo"
        )


def _reference_log_probs(
    params: Params, batch: Batch, config: models.ModelConfig, reference: Reference | None
) -> jax.Array:
    """The reference model's log-probabilities of the targets, [B, S]."""
    if reference is not None:
        frozen = jax.lax.stop_gradient(reference(params))
        return log_probs(frozen, batch, config).targets
    there = jnp.asarray(batch["targets"]) >= 0
    return jnp.where(there, jnp.asarray(batch["reference_log_probs"]), 0.0)


class Scores(NamedTuple):
    """Log-probabilities of the rows' responses, each [B, K].

    Attributes:
        policy: log π(y).
        reference: log π_ref(y); None if not needed.
        lengths: |y|, in tokens; 0 for missing responses.
    """

    policy: jax.Array
    reference: jax.Array | None
    lengths: jax.Array

    @property
    def present(self) -> jax.Array:
        """Which responses exist."""
        return self.lengths > 0

    @property
    def means(self) -> jax.Array:
        """log π(y) / |y|."""
        return self.policy / jnp.maximum(self.lengths, 1.0)

    def ratios(self, average: bool = False) -> jax.Array:
        """log π(y) - log π_ref(y), optionally per token."""
        assert self.reference is not None
        ratios = self.policy - self.reference
        return ratios / jnp.maximum(self.lengths, 1.0) if average else ratios


def pair_loss(scores: Scores, settings: PreferenceConfig) -> tuple[Weighted, Metrics]:
    """The sum over rows of the mean loss over their pairs, for all kinds except kto."""
    pairs, beta, smoothing = Pairs.of(scores.present), settings.beta, settings.label_smoothing
    values = scores.ratios(settings.average) if settings.needs_reference else scores.means
    lead = differences(values)
    if settings.kind == "dpo":
        right, wrong = jax.nn.softplus(-beta * lead), jax.nn.softplus(beta * lead)
        losses = (1 - smoothing) * right + smoothing * wrong
    elif settings.kind == "ipo":
        losses = (lead - 1 / (2 * beta)) ** 2
    elif settings.kind == "simpo":
        losses = jax.nn.softplus(settings.gamma - beta * lead)
    else:
        losses = beta * jax.nn.softplus(-differences(_log_odds(scores)))
    sft = 1.0 if settings.kind == "orpo" else settings.sft
    if sft:
        losses += sft * jnp.broadcast_to(-scores.means[:, :, None], losses.shape)
    metrics = pairs.metrics(jax.lax.stop_gradient(beta * values))
    of_responses = pairs.metrics(jax.lax.stop_gradient(scores.policy))
    metrics |= {f"{name}_log_prob": of_responses[name] for name in ("chosen", "rejected")}
    return Weighted(pairs.mean(losses), jnp.sum(pairs.rows, dtype=jnp.float32)), metrics


def _log_odds(scores: Scores) -> jax.Array:
    """log(e^m / (1 - e^m)) of mean log-probabilities m, [B, K]."""
    # Log-odds of a certain or missing response would be infinite, and their gradient NaN.
    highest = -float(jnp.finfo(scores.means.dtype).eps)
    means = jnp.where(scores.present, jnp.minimum(scores.means, highest), -1.0)
    return means - jnp.log(-jnp.expm1(means))


def unrelated_ratios(scores: Scores, labels: jax.Array) -> Weighted:
    """The sum of h over the second responses of labeled rows, and their number."""
    ratios, there = scores.ratios()[:, 1], scores.present
    unrelated = (labels >= 0) & there[:, 0] & there[:, 1]
    return Weighted(
        jnp.sum(jnp.where(unrelated, ratios, 0.0)), jnp.sum(unrelated, dtype=jnp.float32)
    )


def kto_loss(
    scores: Scores,
    labels: jax.Array,
    settings: PreferenceConfig,
    unrelated: Weighted | None = None,
) -> tuple[Weighted, Metrics]:
    """The sum over labeled rows of λ - v, the distance of their value from the maximum.

    Args:
        scores: log-probabilities of the rows' responses.
        labels: int32 [B].
        settings: coefficients.
        unrelated: from `unrelated_ratios`; None for that of these rows.
    """
    ratios, desirable = scores.ratios(), labels == 1
    labelled = (labels >= 0) & scores.present[:, 0]
    unrelated = unrelated_ratios(scores, labels) if unrelated is None else unrelated
    mean = unrelated.sum / jnp.maximum(unrelated.weight, 1.0)
    kl = jax.lax.stop_gradient(jnp.maximum(mean, 0.0))
    lead = settings.beta * (ratios[:, 0] - kl)
    losses = jnp.where(
        desirable,
        settings.desirable * jax.nn.sigmoid(-lead),
        settings.undesirable * jax.nn.sigmoid(lead),
    )

    def total(values, where):
        return jnp.sum(jnp.where(labelled & where, values, 0.0))

    weight = jnp.sum(labelled, dtype=jnp.float32)
    rewards = jax.lax.stop_gradient(settings.beta * ratios[:, 0])
    metrics = {
        "kl": kl * weight,
        "desirable": jnp.sum(labelled & desirable, dtype=jnp.float32),
        "chosen": total(rewards, desirable),
        "rejected": total(rewards, ~desirable),
    }
    return Weighted(total(losses, True), weight), metrics
