"""The workloads in transformers, on torch: the same shapes, optimizer and work per turn.

This module runs in its own process, which never imports jax, so that the peak memory is torch's
alone. Jobs arrive as plain values (`Workload.job`).
"""

import importlib.metadata
import sys
from collections.abc import Callable
from typing import Any

import torch
import transformers

Job = dict[str, Any]

# Runs one unit of work to completion and returns its loss, if any.
Turn = Callable[[], float | None]

IGNORE = -100  # label of positions without a target


def build(job: Job, *, compiled: bool) -> tuple[Turn, int]:
    """The job's turn and the model's number of parameters.

    Args:
        job: from `Workload.job`.
        compiled: whether to use torch.compile; decoding then uses the static cache it needs.
    """
    if job["kind"] in ("grpo", "ppo"):
        from tools.benchmark import trl_peers  # TRL is not in the extra `parity`

        return trl_peers.build(job)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    # A parameter that two modules share is counted, and updated, once.
    model = (_electra(job) if job["generator"] else model_of(job["model"])).to(_device())
    if job["kind"] == "lora":
        model = _with_lora(model)
    programs = {"train": _train, "lora": _train, "eval": _eval, "decode": _decode}
    turn = programs[job["kind"]](job, model, compiled)
    return turn, sum(parameter.numel() for parameter in model.parameters())


def _with_lora(model: Any) -> Any:
    """Adds LoRA to all seven projections of each layer and freezes everything else."""
    import peft

    names = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=names)
    return peft.get_peft_model(model, config)


def matmul(size: int) -> Callable[[], None]:
    """One product of two square matrices: float32, or bfloat16 on an accelerator."""
    dtype = torch.bfloat16 if accelerated() else torch.float32
    left = torch.ones(size, size, dtype=dtype, device=_device())
    right = torch.ones_like(left)

    def turn() -> None:
        torch.mm(left, right)
        _finish()

    return turn


def versions() -> dict[str, str]:
    """Versions of the libraries that affect the figures."""
    used = [name for name in ("torch", "transformers", "peft", "trl") if name in sys.modules]
    return {name: importlib.metadata.version(name) for name in used}


def accelerated() -> bool:
    """Whether torch runs on a GPU."""
    return torch.cuda.is_available()


def device() -> str:
    """The device that torch runs on."""
    return f"1 × {torch.cuda.get_device_name()}" if accelerated() else "cpu"


def peak_device_memory_mb() -> float | None:
    """Peak memory of tensors on the GPU; None on a CPU."""
    return torch.cuda.max_memory_allocated() / (1 << 20) if accelerated() else None


def _device() -> str:
    return "cuda" if accelerated() else "cpu"


def _finish() -> None:
    """Waits for the GPU."""
    if accelerated():
        torch.cuda.synchronize()


def _precision() -> Any:
    """Precision as ours: parameters in float32 and, on a GPU, matmuls in bfloat16."""
    return torch.autocast(_device(), torch.bfloat16, enabled=accelerated())


def model_of(config: dict[str, Any]) -> Any:
    """The model of a configuration from `Workload.job`."""
    shared = {
        "vocab_size": config["vocab_size"],
        "tie_word_embeddings": config["tied"],
        "attn_implementation": "sdpa",
    }
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
    shared |= {
        "num_hidden_layers": config["num_layers"],
        "hidden_size": config["embed_dim"],
        "num_attention_heads": config["num_heads"],
        "intermediate_size": config["mlp_dim"],
        "max_position_embeddings": config["max_length"],
    }
    if config["family"] == "llama":
        llama = transformers.LlamaConfig(**shared, num_key_value_heads=config["num_kv_heads"])
        return transformers.LlamaForCausalLM(llama)
    shared |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if config["family"] == "bert":
        return transformers.BertForMaskedLM(transformers.BertConfig(**shared))
    electra = transformers.ElectraConfig(**shared, embedding_size=config["table_dim"])
    if config["head"]["kind"] == "mlm":
        return transformers.ElectraForMaskedLM(electra)
    return transformers.ElectraForPreTraining(electra)


def _electra(job: Job) -> Any:
    """A discriminator and a generator that share embeddings."""
    generator, discriminator = model_of(job["generator"]), model_of(job["model"])
    generator.electra.embeddings = discriminator.electra.embeddings
    generator.generator_lm_head.weight = discriminator.electra.embeddings.word_embeddings.weight
    return torch.nn.ModuleDict({"generator": generator, "discriminator": discriminator})


def _train(job: Job, model: Any, compiled: bool) -> Turn:
    settings = job["optimizer"]
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings["learning_rate"],
        betas=(settings["beta1"], settings["beta2"]),
        weight_decay=settings["weight_decay"],
        fused=True,
    )
    objective = {"clm": _clm, "mlm": _mlm, "rtd": _rtd}[job["objective"]](job, model, compiled)

    def turn() -> float:
        with _precision():
            loss = objective()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip_norm"])
        optimizer.step()
        optimizer.zero_grad()
        _finish()
        return loss.item()

    return turn


def _clm(job: Job, model: Any, compiled: bool) -> Callable[[], Any]:
    forward = torch.compile(model) if compiled else model
    tokens = _random_tokens(job, job["batch_size"], job["sequence_length"])
    return lambda: forward(input_ids=tokens, labels=tokens, use_cache=False).loss


def _mlm(job: Job, model: Any, compiled: bool) -> Callable[[], Any]:
    forward = torch.compile(model) if compiled else model
    tokens = _random_tokens(job, job["batch_size"], job["sequence_length"])

    def loss() -> Any:
        masked, labels = mask(tokens, job["model"]["vocab_size"], **job["masking"])
        return forward(input_ids=masked, labels=labels).loss

    return loss


def _rtd(job: Job, model: Any, compiled: bool) -> Callable[[], Any]:
    """L_MLM + 50 · L_Disc (Clark et al. 2020, section 2)."""
    generator, discriminator = (
        torch.compile(model[name]) if compiled else model[name]
        for name in ("generator", "discriminator")
    )
    tokens = _random_tokens(job, job["batch_size"], job["sequence_length"])

    def loss() -> Any:
        masked, labels = mask(tokens, job["model"]["vocab_size"], **job["masking"])
        proposed = generator(input_ids=masked, labels=labels)
        with torch.no_grad():
            chosen = labels != IGNORE
            logits = proposed.logits[chosen].float()
            # Gumbel-max trick: samples from the softmax.
            draws = (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)
            corrupted = tokens.masked_scatter(chosen, draws)
        replaced = (corrupted != tokens).long()
        return proposed.loss + 50.0 * discriminator(input_ids=corrupted, labels=replaced).loss

    return loss


def mask(
    tokens: Any,
    vocab_size: int,
    *,
    mask_id: int,
    rate: float,
    mask_share: float,
    random_share: float,
    **_: Any,
) -> tuple[Any, Any]:
    """Masked tokens and labels, drawn as `transformers.DataCollatorForLanguageModeling` does."""
    chosen = torch.rand(tokens.shape, device=tokens.device) < rate
    share = torch.rand(tokens.shape, device=tokens.device)
    shown = torch.where(share < mask_share, mask_id, tokens)
    if random_share:
        drawn = torch.randint_like(tokens, vocab_size)
        random = (share >= mask_share) & (share < mask_share + random_share)
        shown = torch.where(random, drawn, shown)
    return torch.where(chosen, shown, tokens), torch.where(chosen, tokens, IGNORE)


def _eval(job: Job, model: Any, compiled: bool) -> Turn:
    forward = torch.compile(model) if compiled else model
    tokens = _random_tokens(job, job["batch_size"], job["sequence_length"])

    @torch.inference_mode()
    def turn() -> float:
        with _precision():
            return forward(input_ids=tokens, labels=tokens, use_cache=False).loss.item()

    return turn


def _decode(job: Job, model: Any, compiled: bool) -> Turn:
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
        # By default, generate() compiles only on GPUs.
        settings.compile_config._compile_all_devices = True
    prompts = _random_tokens(job, job["decode_rows"], job["prompt_tokens"])
    there = torch.ones_like(prompts)

    @torch.inference_mode()
    def turn() -> None:
        with _precision():
            rows = model.generate(prompts, attention_mask=there, generation_config=settings)
        _finish()
        assert rows.shape[1] == job["prompt_tokens"] + job["new_tokens"]

    return turn


def _random_tokens(job: Job, rows: int, length: int) -> Any:
    return torch.randint(0, job["model"]["vocab_size"], (rows, length), device=_device())
