"""Recipes: functions that return a frozen config, by name.

A new recipe is a function with a docstring, listed here. Use flags to change fields for one run,
and a recipe for what will be run again.
"""

import types
from collections.abc import Callable, Mapping

from experiments.recipe import Recipe, Training
from experiments.recipes.augmenting import noisy, translated, usual
from experiments.recipes.benchmark import w1, w2
from experiments.recipes.comparing import dpo, dpo_lora, friendly, kto, pairs, simpo
from experiments.recipes.encoders import bert_base, deberta_tiny, electra_base, modernbert_tiny
from experiments.recipes.finetuning import full, lora, qlora, small_talk
from experiments.recipes.gpt2 import gpt2_small
from experiments.recipes.llama import llama3_8b, llama3_70b, mixtral_8x7b
from experiments.recipes.mixture import chapter_mixture
from experiments.recipes.nanogpt import nanogpt_cpu
from experiments.recipes.reinforcing import (
    dapo,
    dr_grpo,
    friendlier,
    grpo,
    gspo,
    ppo,
    rloo,
)
from experiments.recipes.small import quickstart, tiny
from llmjax.data.augmentation import AugmentationConfig

RECIPES: Mapping[str, Callable[[], Recipe]] = types.MappingProxyType(
    {
        recipe.__name__: recipe
        for recipe in (
            tiny,
            quickstart,
            modernbert_tiny,
            deberta_tiny,
            nanogpt_cpu,
            chapter_mixture,
            gpt2_small,
            bert_base,
            electra_base,
            llama3_8b,
            llama3_70b,
            mixtral_8x7b,
            w1,
            w2,
        )
    }
)

FINETUNING: Mapping[str, Callable[[], Training]] = types.MappingProxyType(
    {recipe.__name__: recipe for recipe in (full, lora, qlora, small_talk)}
)

REWARD: Mapping[str, Callable[[], Training]] = types.MappingProxyType(
    {recipe.__name__: recipe for recipe in (pairs, friendly)}
)

PREFERENCE: Mapping[str, Callable[[], Training]] = types.MappingProxyType(
    {recipe.__name__: recipe for recipe in (dpo, dpo_lora, kto, simpo)}
)

REINFORCING: Mapping[str, Callable[[], Training]] = types.MappingProxyType(
    {recipe.__name__: recipe for recipe in (ppo, friendlier, grpo, dapo, gspo, dr_grpo, rloo)}
)

AUGMENTING: Mapping[str, Callable[[], AugmentationConfig]] = types.MappingProxyType(
    {recipe.__name__: recipe for recipe in (usual, translated, noisy)}
)

# Recipes by the entry point that trains them.
STAGES: Mapping[str, Mapping[str, Callable[[], Training]]] = types.MappingProxyType(
    {
        "pretrain": RECIPES,
        "finetune": FINETUNING,
        "reward": REWARD,
        "preference": PREFERENCE,
        "rl": REINFORCING,
    }
)
