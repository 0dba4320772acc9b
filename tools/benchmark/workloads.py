"""The benchmark's workloads: the shapes and the kind of work."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal

from llmjax import peft
from llmjax import spec as specs
from tools.benchmark.settings import MASK_ID, Settings, named

LORA = peft.LoraConfig(rank=8, alpha=16.0)  # on all seven projections of a layer

Kind = Literal["train", "lora", "eval", "decode", "grpo", "ppo", "data"]


@dataclasses.dataclass(frozen=True)
class Workload:
    """One line of the benchmark. A turn is one unit of its work.

    Attributes:
        name: name on the command line.
        shapes: name of the settings.
        kind: what a turn does: train, an optimizer step; lora, a LoRA step; eval, the loss of a
            batch; decode, greedy generation from random prompts; grpo and ppo, an iteration of
            `decode_rows` answers; data, `data_batches` batches from the loader.
        size: toy is for smoke tests; gpu is too large for a CPU.
        decode_rows: prompts decoded together.
        prompt_tokens: length of each prompt.
        new_tokens: tokens generated for each prompt.
        data_batches: batches per turn.
    """

    name: str
    shapes: str
    kind: Kind
    size: Literal["toy", "cpu", "gpu"] = "cpu"
    decode_rows: int = 8
    prompt_tokens: int = 64
    new_tokens: int = 192
    data_batches: int = 400

    @property
    def settings(self) -> Settings:
        """The settings named by `shapes`."""
        return named(self.shapes)

    @property
    def tokens(self) -> int:
        """Tokens that a turn trains on, scores, generates or loads."""
        settings = self.settings
        batch = settings.batch_size * settings.sequence_length
        written = self.decode_rows * self.new_tokens
        if self.kind == "data":
            return self.data_batches * batch
        return written if self.kind in ("decode", "grpo", "ppo") else batch

    @property
    def flops(self) -> float | None:
        """FLOPs of a turn; None where matmuls do not dominate.

        Decoding is bound by memory bandwidth, and the loader has no matmuls.
        """
        # The backward pass costs twice the forward one.
        share = {"train": 1, "eval": 1 / 3}.get(self.kind)
        return share and share * self.settings.training_flops

    @property
    def parameters(self) -> int | None:
        """The model's number of parameters, to compare with a peer's; None without a model."""
        if self.kind == "data":
            return None
        if self.kind == "lora":
            return specs.count(peft.lora.spec(self.settings.spec, LORA))
        return specs.count(self.settings.spec)

    def job(self) -> dict[str, Any]:
        """The worker's job as plain values, because a peer's process does not import jax."""
        settings = self.settings
        generator = settings.generator
        return dataclasses.asdict(self) | {
            "objective": settings.objective,
            "model": _plain(settings.model),
            "generator": None if generator is None else _plain(generator),
            "masking": dataclasses.asdict(settings.masking) | {"mask_id": MASK_ID},
            "batch_size": settings.batch_size,
            "sequence_length": settings.sequence_length,
            "optimizer": dataclasses.asdict(settings.optimizer),
        }


def _plain(config: Any) -> dict[str, Any]:
    """The model's configuration with its derived values."""
    return dataclasses.asdict(config) | {
        "num_kv_heads": config.kv_heads,
        "mlp_dim": config.hidden_dim,
        "table_dim": config.table_dim,
    }


def _decoder(name: str, shapes: str, size: Literal["toy", "cpu"] = "cpu") -> tuple[Workload, ...]:
    return (
        Workload(name, shapes, "train", size),
        Workload(f"{name}-lora", shapes, "lora", size),
        Workload(f"{name}-eval", shapes, "eval", size),
        Workload(f"{name}-decode", shapes, "decode", size),
    )


def _iteration(name: str, shapes: str, kind: Kind, size: Literal["toy", "cpu"] = "cpu") -> Workload:
    """16 answers of 64 tokens to prompts of 32."""
    return Workload(name, shapes, kind, size, decode_rows=16, prompt_tokens=32, new_tokens=64)


WORKLOADS: Mapping[str, Workload] = types.MappingProxyType(
    {
        workload.name: workload
        for workload in (
            *_decoder("W0", "tiny", "toy"),
            *_decoder("W1", "w1"),
            *_decoder("W2", "w2"),
            Workload("MLM0", "tiny_mlm", "train", "toy"),
            Workload("RTD0", "tiny_rtd", "train", "toy"),
            Workload("MLM", "mlm", "train"),
            Workload("RTD", "rtd", "train"),
            Workload("G1", "gpt2_small", "train", "gpu"),
            Workload("G2", "bert_base", "train", "gpu"),
            *(_iteration(f"{kind.upper()}0", "tiny", kind, "toy") for kind in ("grpo", "ppo")),
            *(_iteration(kind.upper(), "policy", kind) for kind in ("grpo", "ppo")),
            Workload("data", "w1", "data"),
        )
    }
)
