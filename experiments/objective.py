"""What a recipe's objective determines: parameters, loss, evaluation, and models to export."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from experiments.recipe import Recipe
from llmjax import data, evaluation, models, objectives, optim, planning, train
from llmjax.data.tokenizer import ByteTokenizer
from llmjax.objectives import Loss


def param_spec(recipe: Recipe) -> Any:
    """The tree of `Param` that is trained; for rtd, that of generator and discriminator.

    Raises:
        ValueError: generator and discriminator do not match.
    """
    if recipe.objective != "rtd":
        return models.spec(recipe.model)
    return objectives.rtd_spec(generator(recipe), recipe.model, recipe.replacement.sharing)


def generator(recipe: Recipe) -> models.ModelConfig:
    """The generator for a recipe whose model is a discriminator."""
    options = recipe.replacement
    return objectives.generator_config(recipe.model, options.width_share, options.layers_share)


def sharding(recipe: Recipe) -> train.Sharding:
    """What stays split during a step."""
    return train.Sharding(param_spec(recipe), recipe.model.compute_dtype, recipe.mesh.zero)


def step_ahead(recipe: Recipe) -> tuple[Any, train.TrainState]:
    """The recipe's step and the shapes of its state, on the current mesh, which may be abstract.

    It uses a byte tokenizer, as special tokens only change constants of the program.
    """
    optimizer = optim.make(recipe.optimizer, param_spec(recipe), recipe.steps)
    step = train.make_step(
        make_loss(recipe, ByteTokenizer()),
        optimizer,
        accumulate=recipe.accumulate,
        sharding=sharding(recipe),
    )
    return step, train.abstract_state(param_spec(recipe), optimizer)


def make_loss(recipe: Recipe, tokenizer: data.Tokenizer, *, plain: bool = False) -> Loss:
    """The recipe's loss.

    Args:
        recipe: the run.
        tokenizer: provides the special tokens, which are never masked, and the starts of words.
        plain: whether to leave out regularization terms, for evaluation.

    Raises:
        ValueError: the objective masks tokens, but the tokenizer has no mask token.
    """
    if recipe.objective == "clm":
        if plain:
            return objectives.clm(recipe.model)
        return objectives.clm(
            recipe.model, label_smoothing=recipe.label_smoothing, z_loss=recipe.z_loss
        )
    if tokenizer.mask_id is None:
        raise ValueError(
            f"objective={recipe.objective} masks tokens, but the tokenizer has no mask token: use "
            "one that has, or objective=clm"
        )
    hidden: dict[str, Any] = {
        "mask_id": tokenizer.mask_id,
        "special_ids": tokenizer.special_ids,
        "starts_word": _starts_word(recipe, tokenizer),
    }
    if recipe.objective == "mlm":
        return objectives.mlm(recipe.model, recipe.masking, **hidden)
    return objectives.rtd(
        generator(recipe),
        recipe.model,
        recipe.masking,
        sharing=recipe.replacement.sharing,
        weight=recipe.replacement.weight,
        **hidden,
    )


def training_flops(recipe: Recipe) -> float:
    """FLOPs of a training step per token read (`llmjax.planning.flops`)."""
    if recipe.objective == "clm":
        return planning.training_flops(recipe.model, recipe.sequence_length)
    if recipe.objective == "mlm":
        return planning.mlm_flops(recipe.model, recipe.sequence_length, recipe.masking)
    return planning.rtd_flops(
        generator(recipe), recipe.model, recipe.sequence_length, recipe.masking
    )


def active_params(recipe: Recipe) -> int:
    """Active parameters per token, of all trained models."""
    found = planning.active_params(recipe.model)
    return found + (planning.active_params(generator(recipe)) if recipe.objective == "rtd" else 0)


def evaluate(
    recipe: Recipe,
    loss: Loss,
    params: Any,
    batches: Iterable[Mapping[str, np.ndarray]],
    tokenizer: data.Tokenizer,
) -> dict[str, float]:
    """The metrics of `llmjax.evaluation` for the objective, including validation_loss.

    Raises:
        ValueError: there is nothing to evaluate.
    """
    if recipe.objective == "mlm":
        return evaluation.evaluate_mlm(loss, params, batches)
    if recipe.objective == "rtd":
        return evaluation.evaluate_rtd(loss, params, batches)
    return evaluation.evaluate(loss, params, batches, tokenizer.token_bytes)


def trained_models(recipe: Recipe, params: Any) -> dict[str, tuple[models.ModelConfig, Any]]:
    """The ordinary models among the trained parameters, by name; the first is the main one."""
    if recipe.objective != "rtd":
        return {"model": (recipe.model, params)}
    sharing = recipe.replacement.sharing
    return {
        "discriminator": (recipe.model, objectives.discriminator_params(params, sharing)),
        "generator": (generator(recipe), objectives.generator_params(params, sharing)),
    }


def _starts_word(recipe: Recipe, tokenizer: data.Tokenizer) -> np.ndarray | None:
    """Whether tokens begin a word, bool [V]; the model's table may exceed the tokenizer's."""
    if not recipe.masking.whole_word:
        return None
    starts = np.zeros(recipe.model.vocab_size, bool)
    starts[: tokenizer.vocab_size] = tokenizer.starts_word
    return starts
