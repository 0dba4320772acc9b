"""Text generation with a trained model: continuing a text, or answering in a conversation."""

import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax

from experiments import flags, runs
from llmjax import models, sampling
from llmjax.data import corpora
from llmjax.data.chat import ASSISTANT, ChatTemplate, Message

# A text to continue, or a conversation to answer.
Prompt = str | Sequence[Message]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How texts are generated.

    Attributes:
        max_new_tokens: maximum length of a text without a stop.
        sampler: how tokens are sampled.
        stops: texts that stop generation and are left out, besides the end of a document.
        seed: seed of sampling.
    """

    max_new_tokens: int
    sampler: sampling.SamplerConfig
    stops: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if "" in self.stops:
            raise ValueError("stop: an empty text would end every text before its first token")


class Writer:
    """Generates text with a model.

    Args:
        model: the model, including adapters.
        settings: generation settings.
        template: the chat template; None to continue plain text.
    """

    def __init__(
        self, model: runs.TrainedModel, settings: Settings, template: ChatTemplate | None = None
    ) -> None:
        self.model, self.settings, self.template = model, settings, template
        self.params = models.for_decoding(model.task.merge(model.params), model.config)
        ends = template or model.tokenizer
        self._stops: dict[str, Any] = {
            "stop_tokens": ends.stop_ids,
            "stop_texts": settings.stops + (template.stop_strings if template else ()),
        }
        self._arguments: dict[str, Any] = self._stops | {
            "max_new_tokens": settings.max_new_tokens,
            "sampler": settings.sampler,
            "tokenizer": model.tokenizer,
        }

    @property
    def room(self) -> int:
        """The maximum number of tokens in a prompt."""
        longest = models.longest_row(self.params, self.model.config) or self.model.config.max_length
        return longest - self.settings.max_new_tokens

    def opened(self, said: str) -> Prompt:
        """The prompt for a first message: a conversation if the model has a chat template."""
        return [{"role": "user", "content": said}] if self.template else said

    def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens, as the beginning of a document."""
        if isinstance(prompt, str):
            return [*self.model.tokenizer.opening, *self.model.tokenizer.encode(prompt)]
        if self.template is None:
            raise ValueError("messages need a model with a chat template, and no --raw")
        return self.template.encode(prompt, add_generation_prompt=True)[0].tolist()

    def stream(self, prompt: Prompt, number: int = 0) -> Iterator[str]:
        """Streams the continuation of a prompt; `number` varies the random draws."""
        return sampling.stream(
            self.params,
            self.encode(prompt),
            self.model.config,
            self._key(number),
            **self._arguments,
        )

    def complete(
        self, prompts: list[Prompt], number: int = 0, samples: int = 1, at_a_time: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yields `samples` completions per prompt with `tokens` and mean `log_prob`, in order."""
        written = sampling.rollouts(
            self.params,
            [self.encode(prompt) for prompt in prompts],
            self.model.config,
            self._key(number),
            samples=samples,
            slots=at_a_time,
            **self._arguments,
        )
        early: dict[int, dict[str, Any]] = {}
        following = 0
        for row in written:
            early[row.prompt * samples + row.sample] = {
                "completion": sampling.text_of(
                    row.tokens.tolist(), self.model.tokenizer, **self._stops
                ),
                "tokens": len(row.tokens),
                "log_prob": float(row.log_probs.mean()),
            }
            while following in early:
                yield early.pop(following)
                following += 1

    def _key(self, number: int) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self.settings.seed), number)


def read_prompts(path: str, *, messages: bool = False) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines.

    Args:
        path: path of the file.
        messages: whether an object may have "messages" instead of a prompt.

    Raises:
        FlagError: it cannot be read, or a line is not an object with a text "prompt".
    """
    wanted = 'a text "prompt"' + (' or "messages"' if messages else "")
    try:
        # Not `splitlines`, as JSON strings may contain other line separators.
        lines = pathlib.Path(path).read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise flags.FlagError(f"--prompts_file={path}: {error}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise flags.FlagError(f"{path}:{number}: not JSON: {error}") from error
        there = isinstance(record, dict) and (
            isinstance(record.get("prompt"), str)
            or (messages and isinstance(record.get("messages"), list) and record["messages"])
        )
        if not there:
            raise flags.FlagError(f"{path}:{number}: not an object with {wanted}")
        records.append(record)
    if not records:
        raise flags.FlagError(f"--prompts_file={path}: it contains no prompts")
    return records


def complete_file(
    writer: Writer, records: list[dict[str, Any]], output: str | None, batch_size: int, samples: int
) -> None:
    """Writes each record with its completions, one JSON object per line, as they finish."""
    for name, value in (("batch_size", batch_size), ("samples", samples)):
        if value < 1:
            raise flags.FlagError(f"--{name}={value}: must be at least 1")
    prompts = [
        record["messages"]
        if writer.template and "messages" in record
        else writer.opened(record["prompt"])
        for record in records
    ]
    with contextlib.ExitStack() as stack:
        file = sys.stdout
        if output:
            file = stack.enter_context(pathlib.Path(output).open("w", encoding="utf-8"))
        completed = writer.complete(prompts, samples=samples, at_a_time=batch_size)
        for place, result in enumerate(completed):
            record = records[place // samples]
            print(json.dumps(record | result, ensure_ascii=False), file=file, flush=True)


def chat(writer: Writer) -> None:
    """Chats on the terminal until /quit or the end of the input."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives `input` line editing and history
    name, step = writer.model.recipe.name, writer.model.step
    print(f"{name}, step {step}. /reset clears, /quit exits, Ctrl-C stops a reply.")
    turns: list[Message] = []
    number = 0
    while True:
        try:
            line = input("> ").strip()
        except KeyboardInterrupt:
            print("\n/quit exits")
            continue
        except EOFError:
            print()
            return
        if line == "/quit":
            return
        if line == "/reset":
            turns.clear()
        elif line:
            turns.append({"role": "user", "content": line})
            reply = show(writer.stream(_context(writer, turns), number))
            turns.append({"role": ASSISTANT, "content": reply})
            number += 1


def _context(writer: Writer, turns: list[Message]) -> Prompt:
    """The prompt from the turns so far; drops the oldest two while it is too long."""
    while True:
        prompt = turns if writer.template else _text(writer, turns)
        if len(turns) <= 2 or len(writer.encode(prompt)) <= writer.room:
            return prompt
        del turns[:2]


def _text(writer: Writer, turns: list[Message]) -> str:
    """The turns as text, for models without a chat template."""
    said = [turn["content"] for turn in turns]
    chats = getattr(writer.model.recipe, "corpus", "") == "chitchat"
    return corpora.chat_prompt(said) if chats else "".join(said)


def show(pieces: Iterable[str]) -> str:
    """Prints text as it is generated and returns it; Ctrl-C stops it."""
    text = ""
    with contextlib.suppress(KeyboardInterrupt):
        for piece in pieces:
            text += piece
            print(piece, end="", flush=True)
    print()
    return text
