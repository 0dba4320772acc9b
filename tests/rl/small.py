"""A policy small enough to write many answers, and what it is asked."""

import numpy as np

from llmjax import models
from llmjax.rl import Prompt, RolloutConfig, Sample, Writer

STOP = 3
CONFIG = models.llama(
    vocab_size=64, num_layers=1, embed_dim=16, num_heads=4, mlp_dim=32, max_length=32
)


class Asked:
    """Endless lists of prompts of two to five tokens, one after the other."""

    def __init__(self, count: int) -> None:
        self.count, self.place = count, 0

    def __iter__(self):
        return self

    def __next__(self) -> list[Prompt]:
        numbers = range(self.place, self.place + self.count)
        self.place += self.count
        return [
            Prompt(np.random.RandomState(i).randint(4, 64, 2 + i % 4), f"prompt {i}", {"answer": i})
            for i in numbers
        ]

    def get_state(self) -> int:
        return self.place

    def set_state(self, state: int) -> None:
        self.place = state


def writer(settings: RolloutConfig) -> Writer:
    return Writer(CONFIG, lambda ids: " ".join(map(str, ids)), settings, [STOP])


def share(samples: list[Sample], token: int = 7) -> list[float]:
    """Of the tokens of each answer."""
    return [float(np.mean(sample.tokens == token)) for sample in samples]


def drawn(sizes: list[tuple[int, int]]) -> list[Sample]:
    """Samples with prompts and completions of these sizes; log-probabilities of no model."""
    random = np.random.RandomState(0)
    return [
        Sample(
            Prompt(random.randint(4, 64, before), "?"),
            random.randint(4, 64, behind),
            "!",
            -random.rand(behind).astype(np.float32),
            ended=True,
        )
        for before, behind in sizes
    ]
