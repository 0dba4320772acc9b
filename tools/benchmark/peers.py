"""The workloads in transformers, on torch: the same shapes, optimizer and work in a turn.

This module runs in a process of its own that never imports jax, so that its peak memory is
torch's alone; it is told what to do in plain values (`Workload.job`).
"""

import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch
import transformers

Job = dict[str, Any]


def build(job: Job, *, compiled: bool) -> tuple[Callable[[], None], int]:
    """The turn of a job, and the model's number of parameters.

    Args:
        job: from `Workload.job`.
        compiled: whether to use torch.compile, for decoding with the static cache that it needs.
    """
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    model = _model(job["model"])
    programs = {"train": _train, "eval": _eval, "decode": _decode}
    turn = programs[job["kind"]](job, model, compiled)
    return turn, sum(parameter.numel() for parameter in model.parameters())


def matmul(size: int) -> Callable[[], None]:
    """One float32 product of two square matrices."""
    left, right = torch.ones(size, size), torch.ones(size, size)

    def turn() -> None:
        torch.mm(left, right)

    return turn


def versions() -> dict[str, str]:
    """Of what a figure depends on."""
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers")}


def _model(config: dict[str, Any]) -> Any:
    shared = {"vocab_size": config["vocab_size"], "tie_word_embeddings": config["tied"]}
    if config["family"] == "gpt2":
        gpt2 = transformers.GPT2Config(
            **shared,
            n_layer=config["num_layers"],
            n_embd=config["embed_dim"],
            n_head=config["num_heads"],
            n_inner=config["mlp_dim"],
            n_positions=config["max_length"],
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            attn_pdrop=0.0,
        )
        return transformers.GPT2LMHeadModel(gpt2)
    llama = transformers.LlamaConfig(
        **shared,
        num_hidden_layers=config["num_layers"],
        hidden_size=config["embed_dim"],
        num_attention_heads=config["num_heads"],
        num_key_value_heads=config["num_kv_heads"],
        intermediate_size=config["mlp_dim"],
        max_position_embeddings=config["max_length"],
    )
    return transformers.LlamaForCausalLM(llama)


def _train(job: Job, model: Any, compiled: bool) -> Callable[[], None]:
    settings = job["optimizer"]
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings["learning_rate"],
        betas=(settings["beta1"], settings["beta2"]),
        weight_decay=settings["weight_decay"],
        fused=True,
    )
    forward = torch.compile(model) if compiled else model
    tokens = _random_tokens(job, job["batch_size"], job["sequence_length"])

    def turn() -> None:
        forward(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip_norm"])
        optimizer.step()
        optimizer.zero_grad()

    return turn


def _eval(job: Job, model: Any, compiled: bool) -> Callable[[], None]:
    forward = torch.compile(model) if compiled else model
    tokens = _random_tokens(job, job["batch_size"], job["sequence_length"])

    @torch.inference_mode()
    def turn() -> None:
        forward(input_ids=tokens, labels=tokens, use_cache=False).loss.item()

    return turn


def _decode(job: Job, model: Any, compiled: bool) -> Callable[[], None]:
    model.eval()
    settings = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=job["new_tokens"],
        min_new_tokens=job["new_tokens"],
        bos_token_id=None,
        eos_token_id=None,
    )
    if compiled:
        settings.cache_implementation = "static"
        settings.compile_config = transformers.CompileConfig(fullgraph=True, mode="default")
        # Otherwise generate() compiles on GPUs alone.
        settings.compile_config._compile_all_devices = True
    prompts = _random_tokens(job, job["decode_rows"], job["prompt_tokens"])
    mask = torch.ones_like(prompts)

    @torch.inference_mode()
    def turn() -> None:
        rows = model.generate(prompts, attention_mask=mask, generation_config=settings)
        assert rows.shape[1] == job["prompt_tokens"] + job["new_tokens"]

    return turn


def _random_tokens(job: Job, rows: int, length: int) -> Any:
    return torch.randint(0, job["model"]["vocab_size"], (rows, length))
