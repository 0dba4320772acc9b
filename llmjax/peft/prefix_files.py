"""Reading and writing prefixes in PEFT's file format: `prompt_embeddings`, [P, L·2·K·C]."""

import json
import os
from pathlib import Path
from typing import Any

import einops
import jax
import numpy as np

from llmjax import mesh, tree
from llmjax.hf import files
from llmjax.hf.writing import LazyTensor, write_file, write_text
from llmjax.models import ModelConfig
from llmjax.models.prefix import NAMES, length
from llmjax.peft.files import CONFIG_FILE, CONFIG_LIMIT, TENSORS_FILE
from llmjax.peft.prefix import PrefixConfig, folded, spec
from llmjax.spec import Tree, is_param

TENSOR = "prompt_embeddings"
_LAYOUT = "p (l t k c) -> t l k p c"  # t: keys, values


def save(
    directory: str | os.PathLike,
    params: Any,
    model: ModelConfig,
    *,
    base_model: str = "",
    task: str = "CAUSAL_LM",
) -> None:
    """Writes a model's prefixes for PEFT's `PeftModel.from_pretrained`.

    Args:
        directory: created if it does not exist; existing files are replaced.
        params: as declared by `prefix.spec`; a reparametrisation is folded.
        model: model configuration.
        base_model: path or name of the base model, for PEFT to find it.
        task: PEFT's task type.

    Raises:
        ValueError: the parameters have no prefix.
    """
    params = folded(params, model)
    count = length(params)
    if not count:
        raise ValueError("the parameters have no prefix: add one with `prefix.spec`")
    layers = params["layers"]
    stacked = tree.stack([_pair(x) for x in layers]) if isinstance(layers, list) else _pair(layers)
    value = np.stack([jax.device_get(stacked[name]) for name in NAMES])
    value = einops.rearrange(value, " -> ".join(reversed(_LAYOUT.split(" -> "))))
    width = model.kv_heads * model.channels
    fields = {
        "peft_type": "PREFIX_TUNING",
        "task_type": task,
        "base_model_name_or_path": base_model or None,
        "inference_mode": True,
        "num_virtual_tokens": count,
        "token_dim": width,
        "num_transformer_submodules": 1,
        "num_attention_heads": model.kv_heads,
        "num_layers": model.num_layers,
        "encoder_hidden_size": width,
        "prefix_projection": False,
    }
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensor = LazyTensor(value.shape, value.dtype, lambda: value)
    write_file(directory / TENSORS_FILE, {TENSOR: tensor})
    write_text(directory / CONFIG_FILE, json.dumps(fields, indent=2, sort_keys=True) + "\n")


def load(directory: str | os.PathLike, declared: Tree, model: ModelConfig) -> tuple[Tree, Any]:
    """Loads prefixes that PEFT or `save` wrote, for `attach`.

    PEFT writes the prefixes that its reparametrisation computes, never the reparametrisation.

    Args:
        directory: with adapter_config.json and adapter_model.safetensors.
        declared: the spec of the base model.
        model: model configuration.

    Returns:
        The spec with prefixes, and the prefixes, sharded over the current mesh.

    Raises:
        ValueError: a file in the directory (which is named) is missing or damaged, or for another
            method or model.
    """
    directory = Path(directory)
    fields = files.read_json(directory / CONFIG_FILE, CONFIG_LIMIT)
    tensors = files.open_file(directory / TENSORS_FILE)
    try:
        value = _tensor(fields, tensors, model)
        new = spec(declared, model, PrefixConfig(value.shape[0]))
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from error
    keys_values = dict(zip(NAMES, einops.rearrange(value, _LAYOUT, **_sizes(model)), strict=True))

    def one(path, param):
        if not param.added:
            return None
        _, *number, _, name = path.split("/")
        found = keys_values[name]
        return jax.device_put(found[int(number[0])] if number else found, _place(param))

    return new, tree.map_with_path(one, new, is_leaf=is_param)


def _pair(block: Any) -> dict[str, jax.Array]:
    return {name: block["attention"][name] for name in NAMES}


def _place(param: Any) -> Any:
    return mesh.named_sharding(param.axes)


def _sizes(model: ModelConfig) -> dict[str, int]:
    return {"l": model.num_layers, "t": 2, "k": model.kv_heads, "c": model.channels}


def _tensor(fields: Any, tensors: Any, model: ModelConfig) -> np.ndarray:
    """The tensor of prefixes [P, L·2·K·C]."""
    if fields.get("peft_type") != "PREFIX_TUNING":
        raise ValueError(
            f"peft_type={fields.get('peft_type')!r}: only PREFIX_TUNING is supported here"
        )
    if fields.get("num_transformer_submodules", 1) not in (1, None):
        raise ValueError("num_transformer_submodules: encoder-decoder prefixes are not supported")
    if TENSOR not in tensors:
        raise ValueError(f"{TENSORS_FILE} has no {TENSOR}")
    value = tensors[TENSOR]
    width = 2 * model.num_layers * model.kv_heads * model.channels
    if value.ndim != 2 or value.shape[1] != width or not len(value):
        raise ValueError(
            f"{TENSOR} is {value.shape}, but the model's {model.num_layers} layers with "
            f"{model.kv_heads} heads of {model.channels} for keys and values need (P, {width})"
        )
    return value
