"""Adding parameters to the blocks of a spec."""

from collections.abc import Callable
from typing import Any

from llmjax.models import ModelConfig
from llmjax.spec import map_params

Block = dict[str, Any]


def with_blocks(spec: Any, config: ModelConfig, extend: Callable[[Block], Block]) -> Any:
    """A model's spec with every block extended.

    Args:
        spec: the model's spec, with layers stacked or in a list.
        config: model configuration.
        extend: from a block's entries, of which it may only read the names, to the extended
            entries; new ones are declared for a single layer.
    """
    layers = spec["layers"]
    if isinstance(layers, list):
        return spec | {"layers": [extend(block) for block in layers]}
    return spec | {"layers": _stacked(layers, extend(layers), config.num_layers)}


def _stacked(old: Block, new: Block, count: int) -> Block:
    """`new`, with the entries that `old` lacks stacked over layers."""
    both = {}
    for name, entry in new.items():
        if name not in old:
            both[name] = map_params(lambda param: param.stack(count), entry)
        elif isinstance(entry, dict):
            both[name] = _stacked(old[name], entry, count)
        else:
            both[name] = entry
    return both
