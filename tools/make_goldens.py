"""Writes goldens of transformers for tiny models, for tests without torch.

    python -m tools.make_goldens

Needs the extra `parity`. The weights are drawn by name, so they need not be kept; inputs, logits,
loss and some gradients go to tests/parity/goldens, a few kilobytes each.
"""

import pathlib
import zlib
from typing import Any

import numpy as np

from llmjax import hf, models
from tools.golden_models import CONFIGS

FOLDER = pathlib.Path(__file__).parents[1] / "tests" / "parity" / "goldens"

Arrays = dict[str, np.ndarray]
Padding = str  # "none", "left" or "right"


def draw_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight of that name: float32, normal around 0, or around 1 for the scales of norms."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    is_scale = name.lower().endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight"))
    return (is_scale + 0.2 * random.randn(*shape)).astype(np.float32)


def draw_inputs(config: models.ModelConfig, padding: Padding = "none") -> Arrays:
    """A batch of two rows of 12 tokens, with targets for the model's head.

    "tokens", "segment_ids" (0 is padding), "positions" within them, "token_types" of models that
    tell them apart, and "targets": the next or masked tokens, labels, or starts and ends, with -1
    for none.
    """
    random = np.random.RandomState(0)
    tokens = random.randint(4, config.vocab_size, (2, 12)).astype(np.int32)
    lengths = np.array([[12], [12]] if padding == "none" else [[9], [5]])
    places = np.arange(12)[None] - (12 - lengths if padding == "left" else 0)
    there = (places >= 0) & (places < lengths)
    # RoBERTa treats every token with the padding id as padding.
    tokens = np.where(there, tokens, max(0, config.embedding.offset - 1)).astype(np.int32)
    batch = {
        "tokens": tokens,
        "segment_ids": there.astype(np.int32),
        "positions": np.where(there, places, 0).astype(np.int32),
    }
    if config.embedding.token_types:
        types = random.randint(0, config.embedding.token_types, tokens.shape)
        batch["token_types"] = types.astype(np.int32)
    batch["targets"] = _draw_targets(config, tokens, there, random)
    return batch


def _draw_targets(config, tokens, there, random) -> np.ndarray:
    kind, labels = config.head.kind, config.head.labels
    if kind == "lm":
        following = np.concatenate([tokens[:, 1:], np.full_like(tokens[:, :1], -1)], axis=1)
        both = there & np.concatenate([there[:, 1:], np.zeros_like(there[:, :1])], axis=1)
        return np.where(both, following, -1).astype(np.int32)
    if kind == "mlm":
        chosen = there & (random.rand(*tokens.shape) < 0.4)
        return np.where(chosen, random.randint(0, config.vocab_size, tokens.shape), -1)
    if kind == "rtd":
        return np.where(there, random.randint(0, 2, tokens.shape), -1)
    if kind == "tokens":
        return np.where(there, random.randint(0, labels, tokens.shape), -1)
    if kind == "classification":
        return random.randint(0, labels, 2)
    if kind == "span":
        first = np.argmax(there, axis=1)
        return np.stack([first + 1, first + 3], axis=1)
    return np.zeros(2, np.int32)  # a reward is judged by its gradient from a sum


def torch_model(config: models.ModelConfig) -> Any:
    """The same model in transformers, with weights by `draw_weight`."""
    import torch
    import transformers

    fields = hf.config_to_hf(config)
    settings = transformers.AutoConfig.for_model(
        **{"pad_token_id": 0, **fields},
        attn_implementation="eager",
        experts_implementation="eager",
        bos_token_id=0,
        eos_token_id=0,
        cls_token_id=0,
        sep_token_id=0,
    )
    model = getattr(transformers, fields["architectures"][0])(settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            names = split_experts(name, np.empty(parameter.shape, np.float32))
            drawn = {key: draw_weight(key, part.shape) for key, part in names.items()}
            parameter.copy_(torch.from_numpy(join_experts(name, drawn)))
    return model.eval()


def split_experts(name: str, value: np.ndarray) -> Arrays:
    """Splits a tensor of the model into those of a checkpoint, which has separate experts."""
    base, _, last = name.rpartition(".")
    if last == "gate_up_proj":
        halves = zip(("gate_proj", "up_proj"), np.split(value, 2, axis=1), strict=True)
        return {
            f"{base}.{e}.{half}.weight": part[e] for half, part in halves for e in range(len(value))
        }
    if last == "down_proj":
        return {f"{base}.{e}.down_proj.weight": part for e, part in enumerate(value)}
    return {name: value}


def join_experts(name: str, parts: Arrays) -> np.ndarray:
    """Inverts `split_experts`."""
    values = list(parts.values())
    if name.endswith("gate_up_proj"):
        half = len(values) // 2
        return np.concatenate([np.stack(values[:half]), np.stack(values[half:])], axis=1)
    return np.stack(values) if name.endswith("down_proj") else values[0]


def compute(config: models.ModelConfig, batch: Arrays) -> Arrays:
    """The results of transformers: "logits", mean "loss", and "gradient/…" of every weight.

    In float64, except for batches with a row that sees nothing: there, transformers' float64 masks
    overflow its float32 softmax.
    """
    import torch

    for dtype in (torch.float64, torch.float32):
        model = torch_model(config).to(dtype)
        result = torch_forward(model, config, batch)
        logits = logits_of(result, config)
        loss = _torch_loss(logits, batch, config.head.kind)
        if config.experts.count and config.head.kind == "lm":
            loss = loss + config.experts.balance * result.aux_loss
        loss.backward()
        if all(_gradient(parameter).isfinite().all() for parameter in model.parameters()):
            break
    results = {"logits": logits.detach().numpy(), "loss": loss.detach().numpy()}
    for name, parameter in model.named_parameters():
        parts = split_experts(name, _gradient(parameter).numpy())
        results |= {f"gradient/{key}": value for key, value in parts.items()}
    return {name: value.astype(np.float32) for name, value in results.items()}


def _gradient(parameter: Any) -> Any:
    """Zero where the loss does not depend on a parameter: the next-sentence head's."""
    return parameter.new_zeros(parameter.shape) if parameter.grad is None else parameter.grad


def torch_forward(model: Any, config: models.ModelConfig, batch: Arrays) -> Any:
    """What a model in transformers returns for a batch."""
    import inspect

    import torch

    given = {
        "input_ids": batch["tokens"],
        "attention_mask": batch["segment_ids"],
        "position_ids": batch["positions"] + config.embedding.offset,
    }
    if "token_types" in batch:
        given["token_type_ids"] = batch["token_types"]
    known = inspect.signature(model.forward).parameters
    tensors = {name: torch.from_numpy(v).long() for name, v in given.items() if name in known}
    routers = {"output_router_logits": True} if "output_router_logits" in known else {}
    return model(**tensors, **routers)


def logits_of(result: Any, config: models.ModelConfig) -> Any:
    """Its logits, with our shapes."""
    import torch

    if config.head.kind == "span":
        return torch.stack([result.start_logits, result.end_logits], dim=-1)
    if config.head.next_sentence:
        return result.prediction_logits
    return result.logits[:, 0] if config.head.kind == "reward" else result.logits


def torch_logits(model: Any, config: models.ModelConfig, batch: Arrays) -> Any:
    """The logits of a model in transformers, with our shapes."""
    return logits_of(torch_forward(model, config, batch), config)


def _torch_loss(logits: Any, batch: Arrays, kind: str) -> Any:
    """The mean over the targets, as transformers computes it from labels; no span in padding."""
    import torch
    from torch.nn import functional

    targets = torch.from_numpy(batch["targets"]).long()
    if kind == "reward":
        return logits.mean()
    if kind == "rtd":
        there = targets >= 0
        return functional.binary_cross_entropy_with_logits(
            logits[there], targets[there].to(logits.dtype)
        )
    if kind == "span":
        there = torch.from_numpy(batch["segment_ids"] != 0)[:, None]
        places = logits.swapaxes(1, 2).masked_fill(~there, -1e30)
        return functional.cross_entropy(places.flatten(0, 1), targets.flatten())
    flat = torch.where(targets < 0, -100, targets).flatten()
    return functional.cross_entropy(logits.reshape(len(flat), -1), flat)


def digest(results: Arrays) -> Arrays:
    """The results, with arrays larger than a vector replaced by products with a fixed vector.

    An error in any entry shows in the product, which is small enough to store.
    """

    def one(name, value):
        if value.ndim < 2 or not name.startswith("gradient/"):
            return value
        return value.reshape(len(value), -1) @ draw_weight(f"{name}/digest", (value[0].size,))

    return {name: one(name, value) for name, value in results.items()}


def main() -> None:
    """Writes a file for each family."""
    FOLDER.mkdir(exist_ok=True)
    for name, config in CONFIGS.items():
        path = FOLDER / f"{name}.npz"
        batch = draw_inputs(config, padding="right")
        arrays: dict[str, Any] = batch | digest(compute(config, batch))
        np.savez_compressed(path, **arrays)
        print(f"{path.relative_to(FOLDER.parents[2])}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
