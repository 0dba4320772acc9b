"""Writes goldens of AdapterHub's `adapters`: bottlenecks in tiny models of transformers.

    python -m tools.make_adapter_goldens

Needs `adapters` (1.3) in a separate environment, as it pins another release of transformers than
the extra `parity`. Weights are drawn by name; logits of real tokens, and the adapters' gradients of
a weighted sum of them, go to tests/parity/goldens/adapters.npz.
"""

from typing import Any

import numpy as np

from llmjax import models
from llmjax.peft.adapter import AdapterConfig, houlsby, pfeiffer
from tools.golden_models import CONFIGS, VARIANTS
from tools.make_goldens import FOLDER, Arrays, digest, draw_inputs, draw_weight
from tools.make_goldens import torch_logits as logits_of_model
from tools.make_goldens import torch_model as model_of

FILE = FOLDER / "adapters.npz"
DIM = 4

# One with norms before, one with grouped heads and without biases, one with norms after the sum.
MODELS: dict[str, models.ModelConfig] = {
    "gpt2": CONFIGS["gpt2"],
    "llama": VARIANTS["llama 2"],
    "bert": CONFIGS["bert"],
}
# With the fields of `adapters` that make the same.
ADAPTERS: dict[str, tuple[AdapterConfig, dict[str, Any]]] = {
    "houlsby": (houlsby(DIM), {}),
    "pfeiffer": (pfeiffer(DIM), {}),
    "chapter": (
        AdapterConfig(DIM, scale=0.5),
        {"non_linearity": "relu", "ln_before": True, "scaling": 0.5},
    ),
}
# Ours, theirs, and whether theirs is transposed.
WEIGHTS = (
    ("down", "adapter_down.{linear}.weight", True),
    ("down_bias", "adapter_down.{linear}.bias", False),
    ("up", "adapter_up.weight", True),
    ("up_bias", "adapter_up.bias", False),
    ("norm/scale", "adapter_norm_before.weight", False),
    ("norm/bias", "adapter_norm_before.bias", False),
)


def draw_adapter(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The adapter's weight at that path, with its layer's number in front: "0/mlp_adapter/up"."""
    return draw_weight(path.replace("norm/scale", "norm.weight"), shape)


def cotangent(segment_ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """The weights of the sum of logits; 0 at padding."""
    weights = draw_weight("cotangent", (*segment_ids.shape, vocab_size))
    return weights * (segment_ids != 0)[..., None]


def compute(config: models.ModelConfig, adapter: AdapterConfig, theirs: dict[str, Any]) -> Arrays:
    """The results of `adapters`: "logits", and "gradient/…" of every weight of the adapters."""
    import adapters
    import torch

    batch = draw_inputs(config, padding="right")
    model = model_of(config).double()
    adapters.init(model)
    double = len(adapter.after) == 2
    kind = adapters.DoubleSeqBnConfig if double else adapters.SeqBnConfig
    model.add_adapter("a", kind(reduction_factor=config.embed_dim // DIM, **theirs))
    model.train_adapter("a")
    model.set_active_adapters("a")
    model.double().eval()
    found = dict(_weights(model))
    with torch.no_grad():
        for path, (weight, transposed) in found.items():
            shape = tuple(weight.shape)
            value = draw_adapter(path, shape[::-1] if transposed else shape)
            weight.copy_(torch.from_numpy(value.T if transposed else value))
    logits = logits_of_model(model, config, batch)
    weights = torch.from_numpy(cotangent(batch["segment_ids"], config.vocab_size))
    (logits * weights).sum().backward()
    real = batch["segment_ids"] != 0
    results = {"logits": logits.detach().numpy()[real]}
    for path, (weight, transposed) in found.items():
        gradient = weight.grad.numpy()
        results[f"gradient/{path}"] = gradient.T if transposed else gradient
    return digest({name: value.astype(np.float32) for name, value in results.items()})


def _weights(model: Any) -> Any:
    """Each weight of the adapters, by our path, and whether it is transposed."""
    from adapters.methods.bottleneck import BottleneckLayer

    places = {"mh_adapter": "attention_adapter", "output_adapter": "mlp_adapter"}
    for layer in model.modules():
        if not isinstance(layer, BottleneckLayer) or "a" not in layer.adapters:
            continue
        adapter = layer.adapters["a"]
        weights = dict(adapter.named_parameters())
        linear = int(adapter.add_layer_norm_before)
        for ours, theirs, transposed in WEIGHTS:
            name = theirs.format(linear=linear)
            if name in weights:
                path = f"{layer.layer_idx}/{places[layer.location_key]}/{ours}"
                yield path, (weights[name], transposed)


def main() -> None:
    """Writes the file."""
    arrays = {
        f"{model}/{kind}/{name}": value
        for model, config in MODELS.items()
        for kind, (adapter, theirs) in ADAPTERS.items()
        for name, value in compute(config, adapter, theirs).items()
    }
    np.savez_compressed(FILE, **arrays)  # type: ignore[arg-type]
    print(f"{FILE.relative_to(FOLDER.parents[2])}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
