"""The experience of a policy: rollouts made between steps and served as training batches.

An iteration samples answers from the policy, scores them, and splits them into batches for some
epochs over the same rollouts. `Experience` is both the iterator over these batches and the hook
that makes new rollouts when they are used up, from the state after the last step. So all batches of
an iteration come from one policy, and a run can resume at any step: the rest of an iteration is
saved in checkpoints.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmjax import mesh, tree
from llmjax.rl import advantages, samples
from llmjax.rl.estimates import Estimator, Players, Rows
from llmjax.rl.learning import Credit, LearningConfig, Memory, learn
from llmjax.rl.rewards import Scores, WeightedReward, score
from llmjax.rl.rollouts import RolloutConfig, Writer
from llmjax.rl.samples import Sample
from llmjax.train.loop import Pause
from llmjax.train.state import TrainState

_NO_MESH = jax.sharding.Mesh(np.empty((), dtype=object), ())


class Experience(Iterator[Rows]):
    """Batches of rollouts, and the state hook that makes them.

    Args:
        prompts: infinite iterator over lists of `writer.settings.prompts` prompts, with get_state
            and set_state.
        writer: answers them.
        players: selects each model's parameters.
        mixture: the rewards and their weights.
        credit: how rewards become advantages and batches.
        batch_size: B, rows of a batch.
        length: S, of a row.
        seed: seed of rollouts and of the order of rows.
        steps: steps of the run; no rollouts are made after the last one.
        record: called with a step and the metrics of an iteration.
        guard: called in the same way; True ends the run.
        extra: infinite iterator over batches of pretraining text that are added to every batch
            (PPO-ptx), or None.

    Raises:
        ValueError: batches do not divide an iteration's answers, answers that are to be compared
            are single, or the divergence has a weight but there is no reference.
    """

    def __init__(
        self,
        prompts: Any,
        writer: Writer,
        players: Players,
        mixture: Mapping[str, WeightedReward],
        credit: Credit,
        *,
        batch_size: int,
        length: int,
        seed: int,
        steps: int,
        record: Callable[[int, dict[str, float]], None] = lambda step, found: None,
        guard: Callable[[int, dict[str, float]], bool] = lambda step, found: False,
        extra: Any = None,
    ) -> None:
        require_fits(writer.settings, credit.learning, batch_size)
        if credit.kl.coefficient and players.reference is None:
            raise ValueError(f"kl.coefficient={credit.kl.coefficient}: it needs a reference")
        self._prompts, self._writer, self._players = prompts, writer, players
        self._mixture, self._credit = mixture, credit
        self._batch_size, self._length = batch_size, length
        self._seed, self._steps, self._extra = seed, steps, extra
        # Of their own, since a run draws dropout and a critic from keys folded from the same seed.
        self._key = jax.random.fold_in(jax.random.key(seed), tree.path_hash("rollouts"))
        self.record, self._guard = record, guard
        temperature, config = writer.settings.temperature, players.config
        # Below float32, decoding rounds differently from a forward pass over whole rows, and it
        # never drops tokens that exceed the capacity of an expert.
        differs = config.compute_dtype != jnp.float32 or config.experts.capacity > 0
        self._again = temperature != 1.0 or differs
        most = writer.settings.max_new_tokens
        self._estimate = Estimator(players, batch_size, temperature, most)
        self._iteration = 0
        self._memory = Memory.new(credit.kl)
        self._rows: Rows = {}
        self._pending: list[np.ndarray] = []  # indices of these rows, int [B], for each batch

    def __next__(self) -> Rows:
        """This process's rows of the next batch.

        Raises:
            ValueError: no rollouts are left.
        """
        if not self._pending:
            raise ValueError("no rollouts are left: call `ready`, and pass this as a hook to fit")
        index, shares = mesh.row_share()
        share = self._batch_size // shares
        mine = self._pending.pop(0)[index * share : (index + 1) * share]
        rows = {name: values[mine] for name, values in self._rows.items()}
        if self._extra is None:
            return rows
        return _joined(rows, next(self._extra))

    def due(self, step: int) -> bool:
        """Whether the rollouts are used up and more are needed."""
        return not self._pending and step < self._steps

    def __call__(self, pause: Pause) -> bool:
        """Makes the rollouts of the next iteration; True if the guard ends the run."""
        return self.make(pause.state, pause.step)

    def ready(self, state: TrainState) -> None:
        """Makes missing rollouts; call it before the first step of a new or resumed run."""
        if not self._pending:
            self.make(state, int(state.step))

    def make(self, state: TrainState, step: int) -> bool:
        """Makes the rollouts of an iteration; True if the guard ends the run."""
        params = state.all_params
        key = jax.random.fold_in(self._key, self._iteration)
        written, judged, watched = self._written(params, key)
        rows = samples.rows(written, self._length)
        rows = self._estimate(params, rows, again=self._again)
        rows, found = self._learned(rows, self._earned(written, judged))
        found |= watched
        self._cut(rows)
        self._iteration += 1
        self.record(step, found)
        return self._guard(step, found)

    def _written(
        self, params: Any, key: jax.Array
    ) -> tuple[list[Sample], Scores, dict[str, float]]:
        """Answers to learn from, their scores, and metrics of all answers, also the replaced."""
        ready = self._writer.ready(self._players.policy(params))
        each = self._writer.settings.samples
        wanted = self._writer.settings.prompts * each
        written: list[Sample] = []
        rounds: list[Scores] = []
        kept: list[np.ndarray] = []  # indices of answers
        last = self._credit.learning.rounds
        for number in range(last + 1):
            answers = self._writer(ready, next(self._prompts), jax.random.fold_in(key, number))
            scores = score(answers, self._mixture)
            differ = advantages.informative(self._earned(answers, scores).reshape(-1, each))
            # In the last round, uninformative groups fill the rest, after the informative ones.
            fill = number == last
            order = np.argsort(~differ, kind="stable") if fill else np.flatnonzero(differ)
            kept.append(len(written) + (order[:, None] * each + np.arange(each)).reshape(-1))
            written += answers
            rounds.append(scores)
            if sum(map(len, kept)) >= wanted:
                break
        judged = jax.tree.map(lambda *parts: np.concatenate(parts), *rounds)
        places = np.concatenate(kept)[:wanted]
        chosen = [written[place] for place in places]
        return chosen, jax.tree.map(lambda x: x[places], judged), _watched(written, judged)

    def _earned(self, written: list[Sample], judged: Scores) -> np.ndarray:
        """The effective scores of answers, float32 [N]: unfinished ones may have a fixed score."""
        unended = self._credit.learning.unended
        if unended is None:
            return judged.total
        ended = np.array([sample.ended for sample in written])
        return np.where(ended, judged.total, np.float32(unended))

    def _learned(self, rows: Rows, scores: np.ndarray) -> tuple[Rows, dict[str, float]]:
        """Rows with advantages, and metrics of the divergence."""
        # Every process has all rows, and computes this on a local device.
        with jax.set_mesh(_NO_MESH):
            group = self._writer.settings.samples
            made, said, self._memory = learn(rows, scores, self._memory, self._credit, group=group)
        host = {name: np.asarray(values) for name, values in made.items()}
        return rows | host, {name: float(value) for name, value in said.items()}

    def _cut(self, rows: Rows) -> None:
        """Splits rows into batches for all epochs, each in its own order."""
        draw = np.random.default_rng((self._seed, self._iteration))
        count = len(rows["tokens"])
        orders = [draw.permutation(count) for _ in range(self._credit.learning.epochs)]
        self._rows = rows
        self._pending = list(np.concatenate(orders).reshape(-1, self._batch_size))

    def get_state(self) -> bytes:
        """The rest of the iteration, and the progress of the run."""
        meta = {
            "prompts": self._prompts.get_state(),
            "extra": self._extra.get_state() if self._extra is not None else None,
            "iteration": self._iteration,
            "memory": [float(x) for x in jax.tree.leaves(self._memory)],
            "pending": [order.tolist() for order in self._pending],
        }
        arrays: dict[str, Any] = self._rows if self._pending else {}
        file = io.BytesIO()
        np.savez(file, meta=np.array(json.dumps(meta)), **arrays)
        return file.getvalue()

    def set_state(self, state: Any) -> None:
        """Restores a state of `get_state`, made by any number of processes."""
        parts = state["processes"] if isinstance(state, Mapping) else [state]
        metas = []
        for part in parts:
            with np.load(io.BytesIO(part)) as saved:
                metas.append(json.loads(str(saved["meta"])))
                # All processes had the same rows.
                self._rows = {name: saved[name] for name in saved.files if name != "meta"}
        meta = metas[0]
        self._pending = [np.array(order) for order in meta["pending"]]
        self._prompts.set_state(meta["prompts"])
        if self._extra is not None:
            self._extra.set_state({"processes": [meta["extra"] for meta in metas]})
        self._iteration, structure = meta["iteration"], jax.tree.structure(self._memory)
        self._memory = jax.tree.unflatten(structure, [np.float32(x) for x in meta["memory"]])


def require_fits(rollouts: RolloutConfig, learning: LearningConfig, batch_size: int) -> None:
    """Raises ValueError unless an iteration's answers fit the batches and the advantages."""
    count = rollouts.prompts * rollouts.samples
    if count % batch_size:
        raise ValueError(
            f"batch_size={batch_size} does not divide the {count} answers of an iteration "
            "(rollouts.prompts × rollouts.samples)"
        )
    if learning.compares and rollouts.samples < 2:
        raise ValueError(
            f"rollouts.samples={rollouts.samples}: {learning.advantages} compares the answers to a "
            "prompt and needs 2 or more"
        )


def _watched(written: list[Sample], judged: Scores) -> dict[str, float]:
    """Metrics of answers."""
    lengths = np.array([len(sample.tokens) for sample in written])
    found = {
        "reward": float(judged.total.mean()),
        "reward_deviation": float(judged.total.std()),
        "answer_tokens": float(lengths.mean()),
        "ended": float(np.mean([sample.ended for sample in written])),
        "repetition": samples.repetition(written),
    }
    return found | {f"reward/{name}": float(part.mean()) for name, part in judged.parts.items()}


def _joined(rows: Rows, text: Mapping[str, np.ndarray]) -> Rows:
    """Rollouts followed by rows of pretraining text, whose targets are not actions."""
    count = len(text["tokens"])
    joined = {}
    for name, values in rows.items():
        empty = np.zeros((count, *values.shape[1:]), values.dtype)
        joined[name] = np.concatenate([values, np.asarray(text.get(name, empty), values.dtype)])
    of_text = (np.asarray(text["targets"]) >= 0).astype(np.float32)
    nothing = np.zeros(rows["targets"].shape, np.float32)
    return joined | {"pretrain_weights": np.concatenate([nothing, of_text])}
