"""Reading and writing PEFT's file format: adapter_config.json and adapter_model.safetensors."""

import collections
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llmjax import tree
from llmjax.hf import files as tensor_files
from llmjax.hf import state
from llmjax.hf.writing import write_file, write_text
from llmjax.peft import fused, ia3, lora, names, targets
from llmjax.peft.transform import extract
from llmjax.spec import Param, Tree, map_params
from llmjax.weights import Dora, Lora, Scaled, is_kind

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
CONFIG_LIMIT = 10_000_000

# Options that change the base model or the correction beyond what the tensors express.
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
_BASE = ".base_layer.weight"
# Initializations that leave the base model as it was downloaded.
_INITS = (True, False, "gaussian", "eva", "orthogonal")


def save(
    directory: str | os.PathLike,
    spec: Tree,
    params: Any,
    *,
    base_model: str = "",
    task: str = "",
    whole: tree.Predicate | None = None,
) -> None:
    """Writes the parameters that a method added, for PEFT's `PeftModel.from_pretrained`.

    Projections that checkpoints fuse into one tensor (GPT-2, ModernBERT) become one correction,
    whose rank is the sum of theirs.

    Args:
        directory: created if it does not exist; existing files are replaced.
        spec: from `lora.spec` or `ia3.spec`, of a model whose parameters have checkpoint names.
        params: as declared by `spec`, or from `extract`.
        base_model: path or name of the base model, for PEFT to find it.
        task: PEFT's task type, such as "CAUSAL_LM".
        whole: selects parameters by path that were fully trained, such as a new head: PEFT's
            modules_to_save. `load` does not read them.

    Raises:
        ValueError: parameters that the format cannot hold (they are listed): experts, convolutions,
            bottleneck adapters and prefixes; the spec has several methods, or none; or a corrected
            table is both that of the embeddings and of the head, of which PEFT corrects one.
    """
    nodes = {path: node for path, node in targets.nodes(spec).items() if is_kind(node)}
    kinds = {type(node) for node in nodes.values() if isinstance(node, Dora | Lora | Scaled)}
    if len(kinds) != 1:
        raise ValueError(
            f"PEFT's format holds one method, but the spec has {len(kinds)}: "
            f"{', '.join(sorted(kind.__name__ for kind in kinds)) or 'none'}"
        )
    adapted = {path: node for path, node in nodes.items() if type(node) in kinds}
    _refuse_tied(spec, adapted)
    tensors, joined = fused.tensors(spec, extract(params, spec))
    matrices = [param for node in adapted.values() if (param := _matrix(node)) is not None]
    modules = {m for param in matrices for m in _modules(param)}
    every = {m for node in targets.nodes(spec).values() for m in _modules(_matrix(node))}
    if kinds == {Scaled}:
        fields = _ia3_fields(adapted, modules, every)
    else:
        ends = _shortest(modules, every)
        fields = _lora_fields(adapted, joined) | {"target_modules": ends}
    config = {
        "task_type": task or None,
        "base_model_name_or_path": base_model or None,
        "inference_mode": True,
        "fan_in_fan_out": any(names.transposed(param) for param in matrices),
        **fields,
    }
    if whole is not None:
        found, config["modules_to_save"] = _whole(spec, params, whole)
        tensors |= found
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_file(directory / TENSORS_FILE, tensors)
    write_text(directory / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")


def load(directory: str | os.PathLike, declared: Tree, *, dtype: Any = None) -> tuple[Tree, Any]:
    """Loads an adapter that PEFT or `save` wrote, for `attach`.

    Args:
        directory: with adapter_config.json and adapter_model.safetensors.
        declared: the spec of the base model.
        dtype: dtype of the parameters; by default the file's.

    Returns:
        The adapted spec, and the adapter's parameters, sharded over the current mesh.

    Raises:
        ValueError: a file (which is named) is missing or damaged; the method is another one, or an
            option changes more than the tensors express; tensors are not for this model, or only
            for some of its stacked layers or one of the two uses of a table.
    """
    directory = Path(directory)
    fields = tensor_files.read_json(directory / CONFIG_FILE, CONFIG_LIMIT)
    tensors = tensor_files.open_file(directory / TENSORS_FILE)
    try:
        found = _by_our_names(declared, tensors)
        kind = fields.get("peft_type")
        if kind == "LORA":
            spec = lora.spec(declared, _lora_config(fields, declared, found))
        elif kind == "IA3":
            spec = ia3.spec(declared, _ia3_config(fields, declared, found))
        else:
            raise ValueError(
                f"peft_type={kind!r}: only LORA and IA3 are supported here, and PREFIX_TUNING by "
                "peft.prefix_files"
            )
        added = map_params(lambda param: param if param.added else None, spec)
        place = state.sharded(None if dtype is None else np.dtype(jax.numpy.dtype(dtype)))
        values = state.from_state(added, found, place=place, ignored=())
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from error
    return spec, values


def _whole(spec: Tree, params: Any, picked: tree.Predicate) -> tuple[dict, list[str]]:
    """Tensors that replace the base model's, and the names of PEFT's modules that hold them."""
    chosen, values = (tree.partition(found, picked)[0] for found in (spec, params))
    tensors = state.lazy_state(chosen, values)
    modules = sorted({name.rpartition(".")[0] for name in tensors})
    return {names.PREFIX + name: tensor for name, tensor in tensors.items()}, modules


def _lora_fields(adapted: Mapping[str, Any], joined: fused.Joined) -> dict[str, Any]:
    """Ranks and alphas, with the most frequent ones as the defaults."""
    by_module = {}
    for node in adapted.values():
        inner = node.base if isinstance(node, Dora) else node
        for module in _modules(_matrix(node)):
            rank, scale = joined.get(module, (inner.a.shape[-1], inner.scale))
            by_module[module] = rank, rank * scale
    rank, alpha = collections.Counter(by_module.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "rank_pattern": {m: r for m, (r, _) in by_module.items() if r != rank},
        "alpha_pattern": {m: a for m, (_, a) in by_module.items() if a != alpha},
        "use_dora": any(isinstance(node, Dora) for node in adapted.values()),
        "use_rslora": False,
        "init_lora_weights": True,
    }


def _ia3_fields(adapted: Mapping[str, Scaled], modules: set, every: set) -> dict[str, Any]:
    """Fields of IA³; modules with factors on their inputs are a subset of the targets."""
    inputs = {
        m for node in adapted.values() if node.over == "inputs" for m in _modules(_matrix(node))
    }
    ends = sorted({*_shortest(inputs, every), *_shortest(modules - inputs, every)})
    return {
        "peft_type": "IA3",
        "target_modules": ends,
        "feedforward_modules": _shortest(inputs, every),
        "init_ia3_weights": True,
    }


def _matrix(node: Any) -> Param | None:
    """The `Param` of the matrix within all wrappers."""
    while isinstance(node, Dora | Lora | Scaled):
        node = node.base
    return targets.matrix(node)


def _modules(param: Param | None) -> list[str]:
    """The names of PEFT's modules that hold a matrix, one per layer."""
    if param is None or not param.hf.endswith(".weight") or param.hf.count("{}") > 1:
        return []
    name = param.hf.removesuffix(".weight")
    return [name.format(i) for i in range(param.shape[0])] if "{}" in name else [name]


def _shortest(modules: set[str], every: set[str]) -> list[str]:
    """Suffixes that select exactly these modules in PEFT, or their full names."""
    for length in (2, 3):
        ends = sorted({".".join(name.split(".")[-length:]) for name in modules})
        found = {m for m in every if any(m == end or m.endswith(f".{end}") for end in ends)}
        if found == modules and not any(re.search(r"\d", end) for end in ends):
            return ends
    return sorted(modules)


def _by_our_names(declared: Tree, tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Renames tensors to the names in our spec: modules of a model without a head lack a prefix.

    Base tables that PEFT stores beside their corrections are left out.
    """
    known = {m for node in targets.nodes(declared).values() for m in _modules(_matrix(node))}
    heads = collections.Counter(name.partition(".")[0] for name in known)
    prefix = max(heads, key=heads.__getitem__, default="") + "."
    bare = not any(name.startswith(names.PREFIX + prefix) for name in tensors)
    views = {}
    for name in tensors:
        if name.endswith(_BASE):
            continue
        longer = prefix + name.removeprefix(names.PREFIX)
        views[names.PREFIX + longer if bare and _module(longer) in known else name] = name
    return _Renamed(views, tensors)


class _Renamed(Mapping[str, np.ndarray]):
    """A mapping with other names that keeps reading lazily."""

    def __init__(self, views: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> None:
        self._views, self._tensors = views, tensors

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[self._views[name]]

    def __iter__(self):
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)


def _module(name: str) -> str:
    """The module that a tensor belongs to."""
    return re.sub(r"\.(lora_\w+|ia3_l)(\.weight)?$", "", name.removeprefix(names.PREFIX))


def _targets(declared: Tree, found: Iterable[str]) -> dict[str, list[str]]:
    """Path in our spec → PEFT's modules, for every matrix that the tensors adapt."""
    modules = {_module(name) for name in found}
    chosen = {}
    known = set()
    for path, node in targets.nodes(declared).items():
        own = _modules(_matrix(node))
        there = [module for module in own if module in modules]
        known.update(there)
        if there and len(there) < len(own):
            raise ValueError(
                f"the adapter covers {len(there)} of {len(own)} layers of {path}, which are "
                "stacked: set model.scan_layers=False"
            )
        if there:
            chosen[path] = there
    if strangers := sorted(modules - known):
        raise ValueError(f"tensors for modules that the model lacks: {targets.listed(strangers)}")
    if not chosen:
        raise ValueError("no tensor belongs to a module of the model")
    _refuse_tied(declared, chosen)
    return chosen


def _refuse_tied(spec: Tree, adapted: Iterable[str]) -> None:
    """Raises ValueError if a table is corrected that embeds tokens and predicts them too.

    Here its correction applies to both; in PEFT, to the look-up alone.
    """
    head = spec.get("head")
    tied = head is None or (isinstance(head, dict) and "out" not in head)
    if tied and "embedding" in adapted:
        raise ValueError(
            "the embeddings are also the head (model.tied=True), but PEFT corrects them only where "
            "tokens are looked up: leave embedding out of the targets, or merge the correction and "
            "write the whole model"
        )


def _lora_config(fields: Mapping, declared: Tree, found: Mapping) -> lora.LoraConfig:
    _refuse(fields)
    if fields.get("bias", "none") != "none":
        raise ValueError(f"bias={fields['bias']!r}: trained biases are not supported")
    if fields.get("init_lora_weights", True) not in _INITS:
        raise ValueError(
            f"init_lora_weights={fields['init_lora_weights']!r} changed the base model; convert "
            "the adapter in PEFT first (path_initial_model_for_weight_conversion)"
        )
    chosen, rules = _targets(declared, found), []
    for path, modules in chosen.items():
        of_layers = {
            (_pattern(fields, "rank", "r", m), _pattern(fields, "alpha", "lora_alpha", m))
            for m in modules
        }
        if len(of_layers) > 1:
            raise ValueError(
                f"layers of {path} have different ranks but are stacked: set "
                "model.scan_layers=False"
            )
        rank, alpha = of_layers.pop()
        rules.append(lora.LoraRule(_exactly(path), int(rank), float(alpha)))
    return lora.LoraConfig(
        targets="|".join(map(_exactly, chosen)),
        rules=tuple(rules),
        rslora=bool(fields.get("use_rslora")),
        dora=bool(fields.get("use_dora")),
    )


def _ia3_config(fields: Mapping, declared: Tree, found: Mapping) -> ia3.Ia3Config:
    _refuse(fields)
    chosen = _targets(declared, found)
    inputs = [
        path
        for path, modules in chosen.items()
        # Factors of inputs are [1, inputs], those of outputs [outputs, 1].
        if found[f"{names.PREFIX}{modules[0]}.ia3_l"].shape[0] == 1
    ]
    nothing = r"(?!)"
    return ia3.Ia3Config(
        "|".join(map(_exactly, chosen)), "|".join(map(_exactly, inputs)) or nothing
    )


def _refuse(fields: Mapping) -> None:
    for name in _UNSUPPORTED:
        if fields.get(name):
            raise ValueError(f"{name}={fields[name]!r}: adapters with it are not supported")


def _pattern(fields: Mapping, name: str, default: str, module: str) -> Any:
    """A module's option: that of the first pattern that its name ends with, or the default."""
    patterns = fields.get(f"{name}_pattern") or {}
    found = (v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(found, fields.get(default, 8))


def _exactly(path: str) -> str:
    return f"^{re.escape(path)}$"
