"""Turns text into batches: documents → tokens → shards → packed, shuffled, sharded rows.

In short:

    manifest = data.prepare(settings, directory)  # once: tokenizer and shards
    tokenizer = data.load_tokenizer(directory)
    stream = data.batches(directory, split="train", batch_size=16, sequence_length=256)

For fine-tuning examples:

    data.prepare_examples(data.ExampleConfig(sources, kind="sft"), directory, tokenizer)
    stream = data.example_batches(
        directory, "sft", split="train", batch_size=16, sequence_length=256
    )
"""

from typing import TYPE_CHECKING, Any

from llmjax.data.chat import ChatTemplate, Message, load_template
from llmjax.data.config import DataConfig, ExampleConfig, ExampleSource, Source, TokenizerConfig
from llmjax.data.corpora import SPEAKERS, chat_prompt, chitchat, python_topics
from llmjax.data.mixture import MixtureConfig
from llmjax.data.prepare import prepare
from llmjax.data.prepare_examples import prepare_examples
from llmjax.data.shards import SPLITS, Manifest, SplitName, load_manifest, verify
from llmjax.data.tokenizer import StreamDecoder, Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from llmjax.data.example_loader import example_batches, prompt_batches
    from llmjax.data.loader import batches

__all__ = [
    "SPEAKERS",
    "SPLITS",
    "ChatTemplate",
    "DataConfig",
    "ExampleConfig",
    "ExampleSource",
    "Manifest",
    "Message",
    "MixtureConfig",
    "Source",
    "SplitName",
    "StreamDecoder",
    "Tokenizer",
    "TokenizerConfig",
    "batches",
    "chat_prompt",
    "chitchat",
    "example_batches",
    "load_manifest",
    "load_template",
    "load_tokenizer",
    "prepare",
    "prepare_examples",
    "prompt_batches",
    "python_topics",
    "verify",
]


def __getattr__(name: str) -> Any:
    # grain takes a second to import, which preparing and sampling do not need.
    if name == "batches":
        from llmjax.data.loader import batches

        return batches
    if name in ("example_batches", "prompt_batches"):
        from llmjax.data import example_loader

        return getattr(example_loader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
