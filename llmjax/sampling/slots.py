"""The host's side of the slots: which row each one holds, and which rows wait."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from llmjax import mesh, models
from llmjax.models import ModelConfig
from llmjax.sampling import decode, stops
from llmjax.sampling import prompts as sizes
from llmjax.sampling.samplers import SamplerConfig


@dataclasses.dataclass(frozen=True)
class Rollout:
    """A finished row, on the host.

    Attributes:
        prompt: index of its prompt.
        sample: its index among the prompt's samples.
        tokens: int32 [n], the generated tokens, including a stop token.
        log_probs: float32 [n], of each token under the model itself: raw logits, full vocabulary,
            no sampler.
    """

    prompt: int
    sample: int
    tokens: np.ndarray
    log_probs: np.ndarray


@dataclasses.dataclass(frozen=True)
class Writing:
    """How rows are generated.

    Attributes:
        config: the model's configuration.
        sampler: how tokens are chosen.
        automata: stop automata.
        max_new_tokens: tokens after which a row ends without a stop.
    """

    config: ModelConfig
    sampler: SamplerConfig
    automata: tuple[stops.Automaton, ...]
    max_new_tokens: int


class Slots:
    """Rows that are generated together.

    Args:
        params: the model's parameters.
        rows: the prompts, checked by `prompts.check`.
        key: a typed PRNG key, or one for each prompt.
        how: settings of the generation.
        samples: rows per prompt.
        count: minimum number of slots; a mesh may round it up.

    Attributes:
        state: the slots' arrays on the device.
        waiting: (prompt, sample) of the rows not started yet.
        count: number of slots.
    """

    def __init__(
        self,
        params: Any,
        rows: Sequence[np.ndarray],
        key: jax.Array,
        how: Writing,
        *,
        samples: int,
        count: int,
    ) -> None:
        self._params, self._rows, self._how = models.for_decoding(params, how.config), rows, how
        self.waiting = collections.deque(
            (prompt, sample) for prompt in range(len(rows)) for sample in range(samples)
        )
        self._keys = sizes.keys_of(key, len(rows))
        self.count = _on_mesh(count)
        self._holders: list[tuple[int, int] | None] = [None] * self.count
        self.state = decode.start(
            how.config,
            self.count,
            max(map(len, rows)),
            how.max_new_tokens,
            most=models.longest_row(params, how.config),
            penalized=how.sampler.repetition_penalty != 1.0,
            automata=len(how.automata),
            key_kind=str(jax.random.key_impl(key)),
        )

    @property
    def busy(self) -> bool:
        """Whether any slot holds a row."""
        return any(holder is not None for holder in self._holders)

    def fill(self) -> None:
        """Assigns waiting rows to free slots and prefills each of their prompts once."""
        begun: dict[int, tuple[int, int]] = {}
        for slot, holder in enumerate(self._holders):
            if holder is None and self.waiting:
                begun[slot] = self._holders[slot] = self.waiting.popleft()
        if not begun:
            return
        read = list(dict.fromkeys(prompt for prompt, _ in begun.values()))
        tokens, lengths = sizes.padded(
            [self._rows[prompt] for prompt in read],
            _on_mesh(min(sizes.power_of_two(len(read)), self.count)),
            self.state.cache.capacity,
        )
        seats = decode.Seats(
            np.full(self.count, -1, np.int32),
            np.zeros((self.count, *self._keys.shape[1:]), self._keys.dtype),
            np.zeros(self.count, np.int32),
        )
        for slot, (prompt, sample) in begun.items():
            seats.origin[slot] = read.index(prompt)
            seats.keys[slot] = self._keys[prompt]
            seats.samples[slot] = sample
        self.state = decode.fill(self._params, self.state, tokens, lengths, seats, self._how.config)

    def write(self, steps: int, ended: int) -> None:
        """Starts up to `steps` decoding steps, which end early once `ended` slots are done."""
        self.state = decode.decode(
            self._params,
            self.state,
            self._how.automata,
            self._how.config,
            self._how.sampler,
            limit=self._how.max_new_tokens,
            steps=steps,
            ended=ended,
        )

    def written(self, slot: int) -> np.ndarray:
        """The tokens of a slot so far; waits for the device."""
        return decode.fetch(self.state.tokens)[slot, : decode.fetch(self.state.lengths)[slot]]

    def harvest(self) -> list[Rollout]:
        """Returns the rows that have ended and frees their slots; waits for the device."""
        done, lengths, tokens, log_probs = map(
            decode.fetch,
            (self.state.done, self.state.lengths, self.state.tokens, self.state.log_probs),
        )
        ended = []
        for slot, holder in enumerate(self._holders):
            if holder is not None and done[slot]:
                written = np.s_[slot, : lengths[slot]]
                ended.append(Rollout(*holder, tokens[written], log_probs[written]))
                self._holders[slot] = None
        return ended


def _on_mesh(rows: int) -> int:
    """Rounds up to a multiple of the devices that split the batch."""
    devices = mesh.size("batch")
    return -(-rows // devices) * devices
