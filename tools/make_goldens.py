"""Writes what transformers computes for tiny models, for tests that have no torch.

    python -m tools.make_goldens

Needs the extra `parity`. The weights are drawn by name, so they need not be kept; tokens, logits,
loss and some gradients go to tests/parity/goldens, a few kilobytes each.
"""

import pathlib
import zlib
from typing import Any

import numpy as np

from llmjax import hf, models

FOLDER = pathlib.Path(__file__).parents[1] / "tests" / "parity" / "goldens"

CONFIGS = {
    "gpt2": models.gpt2(
        vocab_size=48,
        num_layers=2,
        embed_dim=16,
        num_heads=4,
        max_length=16,
        dropout=models.Dropout(),
    ),
    "llama": models.llama(
        vocab_size=48, num_layers=2, embed_dim=16, num_heads=4, num_kv_heads=2, mlp_dim=24
    ),
}

# Of whose gradients the goldens keep: the embedding, an attention and an MLP weight.
GRADIENTS = {
    "gpt2": (
        "transformer.wte.weight",
        "transformer.h.0.attn.c_attn.weight",
        "transformer.h.1.mlp.c_proj.weight",
    ),
    "llama": (
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.1.mlp.gate_proj.weight",
    ),
}


def draw_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight of that name: float32, normal around 0, or around 1 for the scales of norms."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    is_scale = name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight"))
    return (is_scale + 0.2 * random.randn(*shape)).astype(np.float32)


def draw_tokens(config: models.ModelConfig) -> np.ndarray:
    """Tokens int32 [2, 12]."""
    return np.random.RandomState(0).randint(0, config.vocab_size, (2, 12)).astype(np.int32)


def torch_model(config: models.ModelConfig) -> Any:
    """The same model in transformers, in float64, with weights by `draw_weight`."""
    import torch
    import transformers

    settings = transformers.AutoConfig.for_model(
        **hf.config_to_hf(config), attn_implementation="eager", bos_token_id=0, eos_token_id=0
    )
    model: Any = transformers.AutoModelForCausalLM.from_config(settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(draw_weight(name, tuple(parameter.shape))))
    return model.double().eval()


def compute(config: models.ModelConfig, gradients: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """What transformers computes: "tokens", "logits", "loss", and gradients by weight.

    Args:
        config: the model's.
        gradients: the weights whose gradients to keep; all when empty.
    """
    import torch

    model = torch_model(config)
    tokens = draw_tokens(config)
    ids = torch.from_numpy(tokens.astype(np.int64))
    result = model(ids, labels=ids)
    result.loss.backward()
    results = {
        "tokens": tokens,
        "logits": result.logits.detach().numpy(),
        "loss": result.loss.detach().numpy(),
    } | {
        f"gradient/{name}": parameter.grad.numpy()
        for name, parameter in model.named_parameters()
        if not gradients or name in gradients
    }
    return {
        name: value.astype(np.float32) if value.dtype == np.float64 else value
        for name, value in results.items()
    }


def main() -> None:
    """Writes a file for each family."""
    FOLDER.mkdir(exist_ok=True)
    for family, config in CONFIGS.items():
        path = FOLDER / f"{family}.npz"
        arrays: dict[str, Any] = compute(config, GRADIENTS[family])
        np.savez_compressed(path, **arrays)
        print(f"{path.relative_to(FOLDER.parents[2])}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
