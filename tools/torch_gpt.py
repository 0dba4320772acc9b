"""A GPT in plain torch, the reference of tools/convergence.py. Shares no code with llmjax.

Architecture and settings are those published by nanoGPT: pre-norm blocks, learned positions, exact
GELU, no biases, tied head, weights with a standard deviation of 0.02, or 0.02 / sqrt(2·L) for
residual projections; AdamW that decays all matrices, including embeddings.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.mlp_up = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Any) -> Any:
        """[B, S, D] to [B, S, D]."""
        projected = self.queries_keys_values(self.attention_norm(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projected)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp_out(F.gelu(self.mlp_up(self.mlp_norm(x))))


class GPT(nn.Module):
    """Tokens [B, S] to logits [B, S, V]."""

    def __init__(self, vocab_size: int, layers: int, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                residual = name.endswith("_out.weight")
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * layers) if residual else 0.02)

    def forward(self, tokens: Any) -> Any:
        """The head is the embedding table."""
        x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)


def train(
    model: dict[str, int],
    settings: dict[str, float],
    batches: Sequence[tuple[np.ndarray, np.ndarray]],
    learning_rate: Callable[[int], float],
    seed: int,
    report: Callable[[int, GPT], None],
) -> None:
    """Trains a new GPT on the batches in order.

    Args:
        model: the arguments of `GPT`.
        settings: beta1, beta2, epsilon, weight_decay, clip_norm.
        batches: (tokens, targets), int32 [B, S] each.
        learning_rate: learning rate of each step, counted from 0.
        seed: seed of the initial weights.
        report: called after every step with the number of steps and the model.
    """
    torch.manual_seed(seed)
    gpt = GPT(**model)
    matrices = [weight for weight in gpt.parameters() if weight.dim() > 1]
    norms = [weight for weight in gpt.parameters() if weight.dim() == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings["weight_decay"]},
            {"params": norms, "weight_decay": 0.0},
        ],
        betas=(settings["beta1"], settings["beta2"]),
        eps=settings["epsilon"],
    )
    for step, (tokens, targets) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.zero_grad()
        _loss(gpt, tokens, targets).backward()
        nn.utils.clip_grad_norm_(gpt.parameters(), settings["clip_norm"])
        optimizer.step()
        report(step + 1, gpt)


@torch.inference_mode()
def evaluate(gpt: GPT, batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean nats per token over batches of equal size."""
    return float(np.mean([_loss(gpt, tokens, targets).item() for tokens, targets in batches]))


def count(gpt: GPT) -> int:
    """The number of parameters."""
    return sum(weight.numel() for weight in gpt.parameters())


def _loss(gpt: GPT, tokens: np.ndarray, targets: np.ndarray) -> Any:
    logits = gpt(torch.from_numpy(tokens).long())
    return F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).long().flatten())
