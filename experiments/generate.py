"""Lets a trained model write: one text, a file of prompts, or a conversation.

    python -m experiments.generate --run_dir=runs/quickstart
    python -m experiments.generate --run_dir=runs/tiny --prompt="The import statement"
    python -m experiments.generate --run_dir=runs/tiny --prompts_file=in.jsonl --output=out.jsonl
    python -m experiments.generate --run_dir=runs/small_talk --chat

A model that was tuned to answer is spoken to through its chat template: a prompt is what the user
says, and ends where the assistant's turn does. One that was not, or with --raw, goes on with the
text. A prompts file has one JSON object a line with a "prompt", or with "messages"; each comes
back, `--samples` times, with a "completion", its number of tokens, and their mean log-probability
under the model. Without prompts there is a conversation: /reset forgets it, /quit leaves, Ctrl-C
stops a reply.
"""

import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
from absl import flags as absl_flags

from experiments import flags, runs
from llmjax import mesh, models, sampling
from llmjax.data import corpora
from llmjax.data.chat import ASSISTANT, ChatTemplate, Message

# A text to go on from, or a conversation to answer.
Prompt = str | Sequence[Message]

RUN_DIR = absl_flags.DEFINE_string("run_dir", None, "Folder of the run.")
CHECKPOINT = absl_flags.DEFINE_enum("checkpoint", "best", ["best", "last"], "Which one to read.")
PROMPT = absl_flags.DEFINE_string("prompt", None, "What the user says; or text to go on from.")
PROMPTS_FILE = absl_flags.DEFINE_string("prompts_file", None, "JSON lines, each with a prompt.")
CHAT = absl_flags.DEFINE_bool("chat", False, "Talk, line by line, from a pipe too.")
RAW = absl_flags.DEFINE_bool("raw", False, "Go on with plain text, whatever the chat template.")
OUTPUT = absl_flags.DEFINE_string("output", None, "File for --prompts_file; else it is printed.")
BATCH_SIZE = absl_flags.DEFINE_integer("batch_size", 8, "Texts that are written at a time.")
SAMPLES = absl_flags.DEFINE_integer("samples", 1, "Texts for each prompt of a file.")
MAX_NEW_TOKENS = absl_flags.DEFINE_integer("max_new_tokens", 128, "Tokens of a text, at most.")
TEMPERATURE = absl_flags.DEFINE_float("temperature", 0.8, "0 takes the most likely token.")
TOP_K = absl_flags.DEFINE_integer("top_k", 0, "Choose among so many tokens; 0 is all.")
TOP_P = absl_flags.DEFINE_float("top_p", 0.95, "Choose among tokens of so much probability.")
MIN_P = absl_flags.DEFINE_float(
    "min_p", 0.0, "Choose among tokens of so much of the likeliest one's probability."
)
PENALTY = absl_flags.DEFINE_float(
    "repetition_penalty", 1.0, "Above 1, makes tokens that the text has less likely."
)
STOP = absl_flags.DEFINE_multi_string(
    "stop", None, "Text before which a text ends; \\n is a line break"
)
SEED = absl_flags.DEFINE_integer("seed", 0, "Of the draws.")


def main(argv: list[str]) -> None:
    """The entry point."""
    del argv
    if not RUN_DIR.value:
        raise flags.FlagError("--run_dir is missing: name the folder of a run")
    talks = _talks()
    run_dir = pathlib.Path(RUN_DIR.value)
    task = runs.saved_task(run_dir)
    if task.config.head.kind != "lm":
        raise flags.FlagError(
            f"--run_dir={run_dir}: a model with a head of kind {task.config.head.kind} cannot write"
            "; name a run of one that was trained to predict next tokens"
        )
    made = mesh.for_decoding(task.make_mesh())
    with jax.set_mesh(made), _errors_of_flags():
        template = None if RAW.value else task.template
        records = []
        if PROMPTS_FILE.value:
            records = read_prompts(PROMPTS_FILE.value, messages=template is not None)
        # Each turn of a conversation is a line.
        stops = ["\n"] if talks and getattr(task.recipe, "corpus", "") == "chitchat" else []
        stops += [stop.replace("\\n", "\n") for stop in STOP.value or ()]
        settings = Settings(MAX_NEW_TOKENS.value, _sampler(), tuple(stops), SEED.value)
        model = runs.load(run_dir, best=CHECKPOINT.value == "best")
        writer = Writer(model, settings, template)
        if PROMPT.value is not None:
            _show(writer.stream(writer.opened(PROMPT.value)))
        elif PROMPTS_FILE.value:
            complete_file(writer, records, OUTPUT.value, BATCH_SIZE.value, SAMPLES.value)
        else:
            chat(writer)


def _talks() -> bool:
    """Whether there is to be a conversation.

    Raises:
        FlagError: flags that do not go together, or nothing to talk on.
    """
    given = {
        "--prompt": PROMPT.value is not None,
        "--prompts_file": bool(PROMPTS_FILE.value),
        "--chat": CHAT.value,
    }
    chosen = [name for name, there in given.items() if there]
    if len(chosen) > 1:
        raise flags.FlagError(f"{' and '.join(chosen)}: give one of them")
    if OUTPUT.value and not PROMPTS_FILE.value:
        raise flags.FlagError("--output is for --prompts_file, which is missing")
    if not chosen and not sys.stdin.isatty():
        raise flags.FlagError(
            "--prompt or --prompts_file is missing, and there is no terminal to talk on; --chat "
            "reads what is said from a pipe"
        )
    return chosen in ([], ["--chat"])


def _sampler() -> sampling.SamplerConfig:
    return sampling.SamplerConfig(
        temperature=TEMPERATURE.value,
        top_k=TOP_K.value,
        top_p=TOP_P.value,
        repetition_penalty=PENALTY.value,
        min_p=MIN_P.value,
    )


@contextlib.contextmanager
def _errors_of_flags() -> Iterator[None]:
    """What was asked for and cannot be is said in one line."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise flags.FlagError(str(error)) from error


@dataclasses.dataclass(frozen=True)
class Settings:
    """How texts are written.

    Attributes:
        max_new_tokens: where a text ends that meets no stop.
        sampler: how tokens are chosen.
        stops: what ends a text and is no part of it, beside the end of a document.
        seed: of the draws.
    """

    max_new_tokens: int
    sampler: sampling.SamplerConfig
    stops: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if "" in self.stops:
            raise ValueError("stop: an empty text would end every text before its first token")


class Writer:
    """A model and how it is to write.

    Args:
        model: adapters and all.
        settings: how it writes.
        template: how it is spoken to; None: by text that it goes on with.
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
        """The most tokens that a prompt may have."""
        longest = models.longest_row(self.params, self.model.config) or self.model.config.max_length
        return longest - self.settings.max_new_tokens

    def opened(self, said: str) -> Prompt:
        """What is said, as the beginning of a conversation if there are any with the model."""
        return [{"role": "user", "content": said}] if self.template else said

    def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens, at the beginning of a document."""
        if isinstance(prompt, str):
            return [*self.model.tokenizer.opening, *self.model.tokenizer.encode(prompt)]
        if self.template is None:
            raise ValueError("messages are for a model with a chat template, and without --raw")
        return self.template.encode(prompt, add_generation_prompt=True)[0].tolist()

    def stream(self, prompt: Prompt, number: int = 0) -> Iterator[str]:
        """Text that goes on from a prompt, as it is written; `number` varies the draws."""
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
        """For each prompt so many completions, their `tokens` and mean `log_prob`, in order."""
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
        path: of the file.
        messages: whether an object may have "messages" in place of a prompt.

    Raises:
        FlagError: it cannot be read, or a line of it is no object with a text "prompt".
    """
    wanted = 'a text "prompt"' + (' or "messages"' if messages else "")
    try:
        lines = pathlib.Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise flags.FlagError(f"--prompts_file={path}: {error}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise flags.FlagError(f"{path}:{number}: no JSON: {error}") from error
        there = isinstance(record, dict) and (
            isinstance(record.get("prompt"), str)
            or (messages and isinstance(record.get("messages"), list) and record["messages"])
        )
        if not there:
            raise flags.FlagError(f"{path}:{number}: no object with {wanted}")
        records.append(record)
    if not records:
        raise flags.FlagError(f"--prompts_file={path}: there is no prompt in it")
    return records


def complete_file(
    writer: Writer, records: list[dict[str, Any]], output: str | None, batch_size: int, samples: int
) -> None:
    """Writes each record with its completions, a JSON object a line, as they are done."""
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
    """Talks on the terminal until /quit or the end of the input."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives `input` a line to edit and a history
    name, step = writer.model.recipe.name, writer.model.step
    print(f"{name}, step {step}. /reset forgets, /quit leaves, Ctrl-C stops a reply.")
    turns: list[Message] = []
    number = 0
    while True:
        try:
            line = input("> ").strip()
        except KeyboardInterrupt:
            print("\n/quit leaves")
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
            reply = _show(writer.stream(_context(writer, turns), number))
            turns.append({"role": ASSISTANT, "content": reply})
            number += 1


def _context(writer: Writer, turns: list[Message]) -> Prompt:
    """The prompt from the turns so far; forgets the oldest two while they are too long."""
    while True:
        prompt = turns if writer.template else _text(writer, turns)
        if len(turns) <= 2 or len(writer.encode(prompt)) <= writer.room:
            return prompt
        del turns[:2]


def _text(writer: Writer, turns: list[Message]) -> str:
    """Turns as a model reads them that has no chat template."""
    said = [turn["content"] for turn in turns]
    chats = getattr(writer.model.recipe, "corpus", "") == "chitchat"
    return corpora.chat_prompt(said) if chats else "".join(said)


def _show(pieces: Iterable[str]) -> str:
    """Prints text as it comes and returns it; Ctrl-C ends it."""
    text = ""
    with contextlib.suppress(KeyboardInterrupt):
        for piece in pieces:
            text += piece
            print(piece, end="", flush=True)
    print()
    return text


if __name__ == "__main__":
    flags.run(main)
