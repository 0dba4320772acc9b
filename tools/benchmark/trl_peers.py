"""Iterations of reinforcement learning in TRL, on torch: the same shapes and work per turn."""

import tempfile
from collections.abc import Callable
from typing import Any

import datasets
import torch
import transformers
import trl
from trl.experimental import ppo

from tools.benchmark.loops import Turns
from tools.benchmark.peers import Job, Turn, model_of

_FOREVER = 1 << 20  # iterations


def build(job: Job) -> tuple[Turn, int]:
    """The job's turn and the policy's number of parameters."""
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    policy = model_of(job["model"])
    # TRL requires a tokenizer, and prompts as text.
    names = tokenizer(job["model"]["vocab_size"])
    train = {"grpo": _grpo, "ppo": _ppo}[job["kind"]](job, policy, names)
    turns = Turns(lambda pause: train(_AfterSteps(pause)))
    return turns, sum(parameter.numel() for parameter in policy.parameters())


class _AfterSteps(transformers.TrainerCallback):
    """Calls a function after every step, which here is an iteration."""

    def __init__(self, pause: Callable[[], None]) -> None:
        self._pause = pause

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._pause()


def tokenizer(vocab_size: int) -> Any:
    """A tokenizer with the words t0, t1, …; t0 is padding and t1 ends a text."""
    import tokenizers

    names = {f"t{i}": i for i in range(vocab_size)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(names, unk_token="t2"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="t0", eos_token="t1", padding_side="left"
    )


def _prompts(job: Job) -> torch.Tensor:
    shape = (4 * job["decode_rows"], job["prompt_tokens"])
    return torch.randint(4, job["model"]["vocab_size"], shape)


def _shared(job: Job) -> dict[str, Any]:
    """Options of both configurations: one batch per iteration, no output, no rematerialization."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": job["decode_rows"],
        "gradient_accumulation_steps": 1,
        "learning_rate": job["optimizer"]["learning_rate"],
        "gradient_checkpointing": False,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def _grpo(job: Job, policy: Any, names: Any) -> Callable[[Any], Any]:
    """GRPO with four answers per prompt, no reference model, and one step."""
    config = trl.GRPOConfig(
        **_shared(job),
        num_generations=4,
        max_completion_length=job["new_tokens"],
        generation_kwargs={"min_new_tokens": job["new_tokens"]},
        beta=0.0,
        max_steps=_FOREVER,
        logging_strategy="no",
    )
    texts = names.batch_decode(_prompts(job))

    def low(completion_ids: list[list[int]], **_: Any) -> list[float]:
        """The share of small token ids, a cheap reward."""
        half = job["model"]["vocab_size"] // 2
        return [sum(token < half for token in ids) / len(ids) for ids in completion_ids]

    def train(callback: Any) -> None:
        trl.GRPOTrainer(
            model=policy,
            reward_funcs=low,
            args=config,
            train_dataset=datasets.Dataset.from_list([{"prompt": text} for text in texts]),
            processing_class=names,
            callbacks=[callback],
        ).train()

    return train


def _ppo(job: Job, policy: Any, names: Any) -> Callable[[Any], Any]:
    """PPO with a critic of the policy's size, a reference model, and a trivial reward model."""
    config = ppo.PPOConfig(
        **_shared(job),
        num_ppo_epochs=1,
        num_mini_batches=1,
        response_length=job["new_tokens"],
        local_rollout_forward_batch_size=job["decode_rows"],
        num_sample_generations=0,
        total_episodes=_FOREVER * job["decode_rows"],
        logging_strategy="no",
    )
    policy.generation_config.eos_token_id = None
    tiny = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}

    def scorer(**changes: Any) -> Any:
        shape = transformers.LlamaConfig(
            **policy.config.to_diff_dict() | changes | {"num_labels": 1, "pad_token_id": 0}
        )
        return transformers.LlamaForSequenceClassification(shape)

    def train(callback: Any) -> None:
        rows = [{"input_ids": row} for row in _prompts(job).tolist()]
        ppo.PPOTrainer(
            args=config,
            processing_class=names,
            model=policy,
            ref_model=model_of(job["model"]),
            reward_model=scorer(**tiny, **heads),
            value_model=scorer(),
            train_dataset=datasets.Dataset.from_list(rows),
            callbacks=[callback],
        ).train()

    return train
