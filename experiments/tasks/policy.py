"""The task of reinforcement learning: a policy answers prompts and learns from rewards."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments import runs
from experiments.flags import FlagError
from experiments.tasks.reinforcing import Reinforcing, RewardSource
from experiments.tasks.task import mixed
from experiments.tasks.tuning import REFERENCE, TuningTask
from llmjax import data, mesh, models, objectives, peft, rl, sampling
from llmjax.data.config import Kind
from llmjax.objectives import Critic, Loss
from llmjax.objectives.critic import HEAD as VALUE_HEAD
from llmjax.train.loop import Every, Hook, Pause
from llmjax.train.state import TrainState


class PolicyTask(TuningTask):
    """Trains a policy and, optionally, a critic.

    The parameters are the policy's if there is no critic or the critic is a head on it, otherwise
    {"policy": ..., "critic": ...}; beside them, a copy for the reference if there is one.
    """

    kind: ClassVar[Kind] = "prompt"
    recipe: Reinforcing

    def __init__(self, recipe: Reinforcing, run_dir: pathlib.Path) -> None:
        super().__init__(recipe, run_dir)
        if not recipe.rewards:
            raise FlagError(
                "--rewards is missing: --rewards=name=mine,source=FOLDER_OF_A_REWARD_MODEL, or "
                "source=module:function"
            )
        self.critic: Critic | None = None
        own = self.trained
        prefix = ""
        if recipe.critic != "none":
            shared = recipe.critic == "head"
            self.critic = Critic(models.with_head(self.config, "value"), shared=shared)
            declared = self.critic.spec(self.config)
            if shared:
                self.spec = self.spec | {VALUE_HEAD: declared[VALUE_HEAD]}
            else:
                copy = {name: node for name, node in self.spec.items() if name == REFERENCE}
                self.spec, prefix = declared | {"policy": self.model_spec} | copy, "policy/"
        self.guard = rl.Guard(recipe.guards)

        def trained(path: str, leaf: Any) -> bool:
            if own is None or path.startswith((VALUE_HEAD, "critic/")):
                return True
            return own(path.removeprefix(prefix), leaf)

        self.trained = trained

    @property
    def room(self) -> int:
        """The part of a row that a prompt may fill; the answer has the rest."""
        return self.recipe.sequence_length - self.recipe.rollouts.max_new_tokens

    def prepare(self) -> None:
        """Checks that rewards exist, and tokenizes prompts."""
        recipe = self.recipe
        for flag, sources in (("rewards", recipe.rewards), ("gold", recipe.gold)):
            for source in sources:
                try:
                    folders = source.folders()
                    for folder in folders:
                        runs.saved_task(folder)
                    if not folders:
                        rl.load_function(source.source)
                except ValueError as error:
                    raise FlagError(f"--{flag}, {source.name}: {error}") from error
        super().prepare()

    @property
    def players(self) -> rl.Players:
        """Selects each model's parameters."""
        reference = self.reference if self.needs_reference else None
        return rl.Players(self.config, self.own, reference, self.critic)

    @property
    def needs_reference(self) -> bool:
        """Whether the divergence from the reference is penalized, bounded or measured."""
        return self.recipe.needs_reference

    def own(self, params: Any) -> Any:
        """The policy's parameters."""
        return super().own(objectives.policy_params(params, self.critic))

    def complete(self, params: Any) -> Any:
        """Adds the parameters of the critic."""
        if self.critic is None:
            return params
        key = jax.random.fold_in(jax.random.key(self.recipe.seed), 1)
        values = self._critic_params(params, key)
        if self.critic.shared:
            return params | {VALUE_HEAD: values["head"]}
        return {"policy": params, "critic": values}

    def _critic_params(self, policy: Any, key: jax.Array) -> Any:
        """Initial parameters of the critic: a reward model's, or the policy's with a new head."""
        assert self.critic is not None
        declared = models.spec(self.critic.config)
        if self.recipe.critic_base:
            found = runs.load(pathlib.Path(self.recipe.critic_base))
            self._require_same_language("critic_base", found)
            ours = self.critic.config
            same = {name: getattr(ours, name) for name in ("head", "dropout", "remat")}
            if dataclasses.replace(found.config, **same) != ours:
                raise FlagError(
                    f"--critic_base={self.recipe.critic_base}: its configuration differs from "
                    f"--base={self.recipe.base}, which the critic needs"
                )
            return peft.add(found.task.merge(found.params), declared, key)
        base = peft.merge(peft.without(policy, self.model_spec))
        body = {name: jax.tree.map(jnp.copy, node) for name, node in base.items() if name != "head"}
        return peft.add(body, declared, key)

    def make_loss(self, *, plain: bool = False) -> Loss:
        """The policy loss of the recipe."""
        del plain
        recipe = self.recipe
        most = None if recipe.pretraining else recipe.rollouts.max_new_tokens
        return objectives.policy(self.config, recipe.policy, critic=self.critic, most_targets=most)

    def batches(
        self,
        split: data.SplitName,
        *,
        directory: pathlib.Path | None = None,
        batch_size: int | None = None,
    ) -> Iterable[Any]:
        """`rl.Experience` for training; lists of prompts for validation."""
        recipe = self.recipe
        if split == "train":
            return self._experience(directory or self.directory())
        count = recipe.evaluation_prompts
        known = (
            [prompt for prompt in prompts if prompt.extra is not None]
            for prompts in self._prompts("validation", min(count, batch_size or 64), directory)
        )
        return _first(count, known)

    def _experience(self, directory: pathlib.Path) -> rl.Experience:
        recipe = self.recipe
        return rl.Experience(
            self._prompts("train", recipe.rollouts.prompts, directory),
            self.writer,
            self.players,
            self.mixture,
            rl.Credit(recipe.learning, recipe.kl, recipe.scores),
            batch_size=recipe.batch_size,
            length=recipe.sequence_length,
            seed=recipe.seed,
            steps=recipe.steps,
            guard=self.guard.iteration,
            extra=self._pretraining(),
        )

    def _pretraining(self) -> Any:
        """Batches of pretraining text (PPO-ptx), or None."""
        if not self.recipe.pretraining:
            return None
        self._require_tokenizer("pretraining", data.load_tokenizer(self.recipe.pretraining))
        index, count = mesh.row_share()
        return iter(
            data.batches(
                self.recipe.pretraining,
                split="train",
                batch_size=self.recipe.pretraining_rows,
                sequence_length=self.recipe.sequence_length,
                seed=self.recipe.seed,
                process_index=index,
                process_count=count,
            )
        )

    def _prompts(
        self, split: data.SplitName, count: int, directory: pathlib.Path | None
    ) -> "Prompts":
        """Lists of prompts; every process gets all of them."""
        directory = directory or self.directory()
        found = data.prompt_batches(
            directory,
            split=split,
            batch_size=count,
            seed=self.recipe.seed,
            weights=self._weights(directory) if split == "train" else None,
        )
        return Prompts(iter(found), self.tokenizer())

    def _weights(self, directory: pathlib.Path) -> dict[str, float] | None:
        recipe = self.recipe
        each = recipe.rollouts.prompts * recipe.rollouts.samples * recipe.learning.epochs
        iterations = -(-recipe.steps * recipe.batch_size // each)
        most = iterations * recipe.rollouts.prompts * (1 + recipe.learning.rounds)
        return mixed(directory, recipe.data.mixture, examples=most)

    @functools.cached_property
    def writer(self) -> rl.Writer:
        """Generates answers."""
        decode = functools.partial(sampling.text_of, tokenizer=self.tokenizer())
        stops, rollouts = self.template.stops, self.recipe.rollouts
        return rl.Writer(self.config, decode, rollouts, stops, self.model_spec)

    @functools.cached_property
    def mixture(self) -> dict[str, rl.WeightedReward]:
        """The rewards and their weights."""
        return {
            s.name: rl.WeightedReward(self._reward("rewards", s), s.weight)
            for s in self.recipe.rewards
        }

    @functools.cached_property
    def gold(self) -> dict[str, rl.WeightedReward]:
        """The gold rewards and their weights."""
        return {
            s.name: rl.WeightedReward(self._reward("gold", s), s.weight) for s in self.recipe.gold
        }

    def _reward(self, flag: str, source: RewardSource) -> rl.Reward:
        try:
            folders = source.folders()
            if not folders:
                return rl.load_function(source.source)
            found = [runs.load(folder) for folder in folders]
            for folder, model in zip(folders, found, strict=True):
                self._require_same_language(flag, model)
                if model.config != found[0].config:
                    raise ValueError(f"{folder} and {folders[0]} have different models")
            return rl.ModelReward(
                [model.task.merge(model.params) for model in found],
                found[0].config,
                batch_size=self.recipe.batch_size,
                length=self.recipe.sequence_length,
            )
        except ValueError as error:
            raise FlagError(f"--{flag}, {source.name}: {error}") from error

    def _require_same_language(self, flag: str, other: "runs.TrainedModel") -> None:
        """Raises FlagError unless a model has the policy's tokenizer and chat template."""
        self._require_tokenizer(flag, other.tokenizer)
        template = other.task.template
        if template is not None and template.source != self.template.source:
            raise FlagError(
                f"--{flag}: {other.task.run_dir} was trained with another chat template than the "
                f"policy's, --data.template={self.recipe.data.template!r}: give both the same"
            )

    def _require_tokenizer(self, flag: str, other: data.Tokenizer) -> None:
        if other.fingerprint != self.tokenizer().fingerprint:
            raise FlagError(f"--{flag}: its tokenizer differs from the policy's")

    def ready(self, batches: Any, state: TrainState, record: Any) -> None:
        """Evaluates a new run's policy, and makes the first rollouts."""
        batches.record = self.guard.record = record
        _ = self.mixture, self.gold  # raises if rewards are missing
        if int(state.step) == 0:
            found = self.evaluate(state.all_params, self.batches("validation"))
            self._judge(0, found)
            record(0, found)
        batches.ready(state)

    def hooks(self, batches: Any, record: Any) -> list[Hook]:
        """The hooks of the guard, at evaluations, and of rollouts."""

        def judge(pause: Pause) -> bool:
            return self._judge(pause.step, pause.metrics)

        return [Every(self.recipe.evaluate_every, judge, last=self.recipe.steps), batches]

    def remembering(self) -> dict[str, Any]:
        """The guard, whose state is saved with the run."""
        return {"guard": self.guard}

    def _judge(self, step: int, found: dict[str, float]) -> bool:
        if "validation_gold" not in found:
            return False
        seen = ("validation_reward", "validation_gold", "validation_gold_error")
        return self.guard.evaluation(step, *(found[name] for name in seen))

    def ended(self) -> str:
        """Why the guard ended the run, or ""."""
        return self.guard.ended

    def evaluate(self, params: Any, batches: Iterable[Any]) -> dict[str, float]:
        """Rewards of answers to held-out prompts, one answer each, with fixed keys.

        Raises:
            ValueError: there are no prompts.
        """
        ready = self.writer.ready(self.own(params))
        key = jax.random.key(self.recipe.seed + 1)
        written: list[rl.Sample] = []
        for number, prompts in enumerate(batches):
            written += self.writer(ready, prompts, jax.random.fold_in(key, number), samples=1)
        if not written:
            raise ValueError("there are no held-out prompts to evaluate with: prepare more")
        judged = rl.score(written, self.mixture)
        found = {
            "validation_reward": float(judged.total.mean()),
            "validation_answer_tokens": float(np.mean([len(s.tokens) for s in written])),
            "validation_ended": float(np.mean([s.ended for s in written])),
            "validation_repetition": rl.repetition(written),
        }
        for name, (reward, _) in self.mixture.items():
            if isinstance(reward, rl.ModelReward) and reward.count > 1:
                spread = reward.each(written).std(axis=0)
                found[f"validation_disagreement/{name}"] = float(spread.mean())
        if self.gold:
            gold = rl.score(written, self.gold).total
            found["validation_gold"] = float(gold.mean())
            found["validation_gold_error"] = float(gold.std() / len(gold) ** 0.5)
        return found

    @property
    def sample_every(self) -> int | None:
        """The interval of evaluations."""
        return self.recipe.evaluate_every

    def sample(self, params: Any) -> tuple[str, str]:
        """An answer to the first held-out prompt."""
        prompt = next(self._prompts("validation", 1, None))[0]
        ready = self.writer.ready(self.own(params))
        (answer,) = self.writer(ready, [prompt], jax.random.key(self.recipe.seed), samples=1)
        return prompt.text, answer.text


def _first(count: int, lists: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
    """The first `count` items of lists, or all."""
    for things in lists:
        yield things[:count]
        count -= len(things)
        if count <= 0:
            return


class Prompts(Iterator[Sequence[rl.Prompt]]):
    """An iterator over lists of prompts with their texts."""

    def __init__(self, batches: Any, tokenizer: data.Tokenizer) -> None:
        self._batches, self._tokenizer = batches, tokenizer

    def __next__(self) -> list[rl.Prompt]:
        """The next list."""
        found = next(self._batches)
        return [
            rl.Prompt(tokens, self._tokenizer.decode(tokens.tolist()), fields)
            for tokens, fields in zip(found["tokens"], found["fields"], strict=True)
        ]

    def get_state(self) -> Any:
        """The position in the data."""
        return self._batches.get_state()

    def set_state(self, state: Any) -> None:
        """Restores a position."""
        self._batches.set_state(state)
