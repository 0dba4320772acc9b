"""Writes goldens of PEFT: a saved adapter and the adapted model's logits, for tests without torch.

    python -m tools.make_peft_goldens

Needs the extra `parity`. The base model's weights are drawn by name, as `tools.make_goldens` does.
"""

import pathlib
from typing import Any

import numpy as np

from llmjax import models
from tools.golden_models import CONFIGS
from tools.make_goldens import FOLDER, draw_inputs, draw_weight, torch_model

ADAPTER = FOLDER / "peft"
CONFIG: models.ModelConfig = CONFIGS["llama"]
FIELDS: dict[str, Any] = {
    "r": 2,
    "lora_alpha": 3,
    "target_modules": ["embed_tokens", "lm_head", "q_proj", "o_proj", "down_proj"],
    "rank_pattern": {"down_proj": 1},
    "use_rslora": True,
}


def adapted_model(config: models.ModelConfig, fields: Any) -> Any:
    """The model of `make_goldens` under PEFT's adapter, whose values are drawn by name.

    Args:
        config: model configuration.
        fields: a configuration of PEFT.
    """
    import peft
    import torch

    model = peft.get_peft_model(torch_model(config), fields)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            value = torch.from_numpy(draw_weight(name, tuple(parameter.shape)))
            if "magnitude" in name:
                value = value.abs() + 1
            parameter.copy_(value + 1 if "ia3" in name else value)
    return model.eval()


def logits(model: Any, config: models.ModelConfig) -> np.ndarray:
    """The logits for the batch of `make_goldens`, padded on the right."""
    import torch

    batch = draw_inputs(config, "right")
    inputs = {"input_ids": batch["tokens"], "attention_mask": batch["segment_ids"]}
    if "token_types" in batch:
        inputs["token_type_ids"] = batch["token_types"]
    with torch.no_grad():
        run = {name: torch.from_numpy(value.astype(np.int64)) for name, value in inputs.items()}
        return model(**run).logits.numpy()


def write(folder: pathlib.Path) -> None:
    """The adapter's two files, and logits.npy."""
    import peft

    model = adapted_model(CONFIG, peft.LoraConfig(**FIELDS))
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    np.save(folder / "logits.npy", logits(model, CONFIG))


if __name__ == "__main__":
    write(ADAPTER)
