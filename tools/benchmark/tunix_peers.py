"""The workloads in Tunix: the same shapes, optimizer and work per turn, with its own programs."""

import importlib.metadata
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
from flax import nnx
from tunix.generate import sampler
from tunix.models.llama3 import model as llama
from tunix.rl import rl_cluster
from tunix.rl import utils as rl_utils
from tunix.rl.grpo import grpo_learner
from tunix.rl.ppo import ppo_learner
from tunix.rl.rollout import base_rollout
from tunix.sft import peft_trainer

from tools.benchmark.loops import Turns
from tools.benchmark.ours import Turn, accelerated, device, matmul, peak_device_memory_mb
from tools.benchmark.workloads import LORA

__all__ = ["accelerated", "build", "device", "matmul", "peak_device_memory_mb", "versions"]

Job = dict[str, Any]

PROJECTIONS = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
_FOREVER = 1 << 20  # iterations


def build(job: Job) -> tuple[Turn, int]:
    """The turn of a job with a decoder of the family llama, and its number of parameters."""
    model = _model(job["model"], tied=job["model"]["tied"])
    if job["kind"] == "lora":
        model = _with_lora(model)
    programs = {"eval": _eval, "decode": _decode, "grpo": _grpo, "ppo": _ppo}
    turn = programs.get(job["kind"], _train)(job, model)
    return turn, sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def versions() -> dict[str, str]:
    """Versions of the libraries that affect the figures."""
    return {name: importlib.metadata.version(name) for name in ("google-tunix", "jax", "qwix")}


def _model(config: Job, *, tied: bool, kind: type[llama.Llama3] = llama.Llama3) -> llama.Llama3:
    shape = llama.ModelConfig(
        num_layers=config["num_layers"],
        vocab_size=config["vocab_size"],
        embed_dim=config["embed_dim"],
        hidden_dim=config["mlp_dim"],
        num_heads=config["num_heads"],
        head_dim=config["embed_dim"] // config["num_heads"],
        num_kv_heads=config["num_kv_heads"],
        rope_theta=10_000,
        norm_eps=1e-5,
        weight_tying=tied,
    )
    return kind(shape, rngs=nnx.Rngs(0))


class _Critic(llama.Llama3):
    """Takes the segments that Tunix 0.1.7 gives to critics and its Llama does not know."""

    def __call__(self, *args: Any, segment_ids: Any = None, **options: Any) -> Any:
        del segment_ids
        return super().__call__(*args, **options)


def _with_lora(model: llama.Llama3) -> Any:
    """Adds LoRA to all seven projections of each layer."""
    provider = qwix.LoraProvider(module_path=f".*({PROJECTIONS})", rank=LORA.rank, alpha=LORA.alpha)
    given = model.get_model_input()
    return qwix.apply_lora_to_model(model, provider, rngs=nnx.Rngs(1), **given)


def _train(job: Job, model: Any) -> Turn:
    trainer, batch = _trainer(job, model)
    step, _ = trainer.jit_train_and_eval_step()

    def turn() -> float:
        loss, _, norm = step(batch)
        jax.block_until_ready((norm, nnx.state(trainer.model)))
        return float(loss)

    return turn


def _eval(job: Job, model: Any) -> Turn:
    trainer, batch = _trainer(job, model)
    _, score = trainer.jit_train_and_eval_step()
    return lambda: float(score(batch)[0])


def _trainer(job: Job, model: Any) -> tuple[peft_trainer.PeftTrainer, peft_trainer.TrainingInput]:
    """Tunix's trainer with its own loss, and a batch."""
    config = peft_trainer.TrainingConfig(eval_every_n_steps=_FOREVER, max_steps=_FOREVER)
    trainer = peft_trainer.PeftTrainer(model, _optimizer(job), config)
    rows, length = job["batch_size"], job["sequence_length"]
    causal = np.tril(np.ones((length, length), bool))
    trainer.with_gen_model_input_fn(
        lambda batch: {
            "input_tokens": batch.input_tokens,
            "input_mask": batch.input_mask,
            "positions": jnp.broadcast_to(jnp.arange(length), (rows, length)),
            "attention_mask": jnp.broadcast_to(causal, (rows, length, length)),
        }
    )
    tokens, there = _random_tokens(job, rows, length), jnp.ones((rows, length), jnp.int32)
    return trainer, peft_trainer.TrainingInput(jnp.asarray(tokens), there)


def _decode(job: Job, model: llama.Llama3) -> Turn:
    config = model.config
    length = job["prompt_tokens"] + job["new_tokens"]
    cache = (length, config.num_layers, config.num_kv_heads, config.head_dim)
    sample = sampler.Sampler(model, _Numbers(config.vocab_size), sampler.CacheConfig(*cache))
    prompts = _prompts(job, job["decode_rows"])

    def turn() -> None:
        written = sample(prompts, job["new_tokens"], max_prompt_length=job["prompt_tokens"])
        assert sum(map(len, written.tokens)) == job["decode_rows"] * job["new_tokens"]

    return turn


def _grpo(job: Job, policy: llama.Llama3) -> Turn:
    cluster = _cluster(job, policy, actor=policy)
    config = grpo_learner.GRPOConfig(num_generations=4, num_iterations=1, beta=0.0)
    learner = grpo_learner.GRPOLearner(cluster, config, _reward)
    return _turns(job, learner, policy, job["decode_rows"] // 4)


def _ppo(job: Job, policy: llama.Llama3) -> Turn:
    reference = _model(job["model"], tied=job["model"]["tied"])
    critic = rl_utils.create_critic_model(_model(job["model"], tied=False, kind=_Critic))
    cluster = _cluster(job, policy, actor=policy, reference=reference, critic=critic)
    config = ppo_learner.PPOConfig(num_iterations=1, beta=0.05)
    learner = ppo_learner.PPOLearner(cluster, config, _reward)
    return _turns(job, learner, (policy, critic), job["decode_rows"])


def _cluster(job: Job, policy: llama.Llama3, **models: Any) -> rl_cluster.RLCluster:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=_optimizer(job),
        critic_optimizer=_optimizer(job),
        eval_every_n_steps=_FOREVER,
        max_steps=_FOREVER,
    )
    rollout = base_rollout.RolloutConfig(
        max_tokens_to_generate=job["new_tokens"],
        max_prompt_length=job["prompt_tokens"],
        temperature=1.0,
        kv_cache_size=job["prompt_tokens"] + job["new_tokens"],
    )
    return rl_cluster.RLCluster(
        tokenizer=_Numbers(policy.config.vocab_size),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(rl_cluster.Role, mesh),
            training_config=training,
            rollout_config=rollout,
        ),
        **models,
    )


def _turns(job: Job, learner: Any, trained: Any, prompts: int) -> Turn:
    """Turns of a learner, whose iterations end when it asks for more prompts."""
    batch = {"prompts": np.array(_prompts(job, prompts))}  # a list would be a tree

    def batches(pause: Callable[[], None]) -> Iterator[dict[str, np.ndarray]]:
        yield batch
        while True:
            jax.block_until_ready(nnx.state(trained, nnx.Param))
            pause()
            yield batch

    return Turns(lambda pause: learner.train(batches(pause)))


class _Numbers:
    """A tokenizer for texts such as "17 4": one number per token. No token ends a text."""

    def __init__(self, vocab_size: int) -> None:
        self._end = vocab_size

    def encode(self, text: str, **_: Any) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Any, **_: Any) -> str:
        return " ".join(map(str, np.asarray(ids).tolist()))

    def bos_id(self) -> int:
        return 0  # none is added

    def eos_id(self) -> int:
        return self._end

    def pad_id(self) -> int:
        return 0


def _reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """The share of small token ids, a cheap reward."""
    del prompts
    rows = [[int(word) for word in text.split()] for text in completions]
    return [float(np.mean(np.array(row) < 4096)) for row in rows]


def _optimizer(job: Job) -> optax.GradientTransformation:
    settings = job["optimizer"]
    return optax.chain(
        optax.clip_by_global_norm(settings["clip_norm"]),
        optax.adamw(
            settings["learning_rate"],
            b1=settings["beta1"],
            b2=settings["beta2"],
            weight_decay=settings["weight_decay"],
        ),
    )


def _prompts(job: Job, rows: int) -> list[str]:
    tokens = _random_tokens(job, rows, job["prompt_tokens"])
    return [" ".join(map(str, row.tolist())) for row in tokens]


def _random_tokens(job: Job, rows: int, length: int) -> np.ndarray:
    vocab_size = job["model"]["vocab_size"]
    return np.random.default_rng(0).integers(4, vocab_size, (rows, length)).astype(np.int32)
