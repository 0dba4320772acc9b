"""Recipes of supervised fine-tuning."""

import dataclasses

from experiments.tasks.finetuning import Finetuning
from llmjax import optim
from llmjax.data.config import ExampleConfig
from llmjax.peft import LoraConfig, MethodConfig


def full() -> Finetuning:
    """Fine-tunes all parameters, at the usual rate; needs base and data."""
    return Finetuning(
        name="full",
        optimizer=optim.suggested("full", 1000),
        steps=1000,
        evaluate_every=100,
        checkpoint_every=100,
    )


def lora() -> Finetuning:
    """LoRA on all projections of attention and MLPs; needs base and data."""
    return Finetuning(
        name="lora",
        peft=MethodConfig(name="lora", lora=LoraConfig(rank=8, alpha=16.0)),
        optimizer=optim.suggested("lora", 1000),
        steps=1000,
        evaluate_every=100,
        checkpoint_every=100,
    )


def qlora() -> Finetuning:
    """LoRA on projections stored in 4 bits (Dettmers et al. 2023); needs base and data."""
    return Finetuning(
        name="qlora",
        peft=MethodConfig(name="lora", quantize="nf4", lora=LoraConfig(rank=16, alpha=16.0)),
        optimizer=optim.suggested("qlora", 1000),
        steps=1000,
        evaluate_every=100,
        checkpoint_every=100,
    )


def small_talk() -> Finetuning:
    """The quickstart's model learns to answer a thousand questions, in a minute on two cores."""
    return Finetuning(
        name="small_talk",
        base="runs/quickstart",
        corpus="chatterbot",
        data=ExampleConfig(template="speakers", max_length=128),
        optimizer=dataclasses.replace(
            optim.suggested("full", 60), learning_rate=3e-4, warmup_steps=5
        ),
        steps=60,
        batch_size=32,
        sequence_length=128,
        evaluate_every=20,
    )
