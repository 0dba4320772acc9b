"""Settings of the data pipeline: what to read, how to tokenize it, and what to accept."""

import dataclasses
import re
from typing import Literal

from llmjax.data.cleaning.config import CleaningConfig
from llmjax.data.mixture import MixtureConfig

# Pieces that a SentencePiece vocabulary reserves: <pad>, <s>, </s>, <unk> and the 256 bytes of
# byte fallback.
RESERVED_PIECES = 4 + 256

SHORTEST = 8  # the least that `ExampleConfig.max_length` may be

# The parts of a record that `ExampleSource.fields` may map.
PARTS = (
    "text",
    "text_pair",
    "system",
    "instruction",
    "input",
    "output",
    "messages",
    "prompt",
    "chosen",
    "rejected",
    "responses",
    "scores",
    "margin",
    "completion",
    "label",
)
KINDS = ("sft", "classification", "comparison", "prompt", "judged")
Kind = Literal["sft", "classification", "comparison", "prompt", "judged"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclasses.dataclass(frozen=True)
class Source:
    """A corpus: files of documents under one name.

    Attributes:
        name: in manifests, weights and messages; letters, digits, `_` and `-`.
        path: a file, a folder (searched recursively) or a glob. The suffix gives the format:
          `.txt`, `.text`, `.md`, `.jsonl`, `.ndjson`, `.html`, `.htm` or `.warc`, optionally
          followed by `.gz` or `.zst`; or `.parquet`.
        weight: the source's share of the training *tokens*, relative to the other sources' weights;
          0 leaves it out of training. A source smaller than its share is repeated sooner.
        text_field: the field (JSONL) or column (Parquet) that holds a document's text.
        split: what a document of a plain text file is. `file`: the whole file, cut at a line end
          whenever it exceeds `document_bytes`, so that files of any size stream; `paragraph`: the
          text between blank lines; `line`: a line that is not blank.
        document_bytes: size in bytes at which a `file` or a `paragraph` is cut; a line is cut only
            in a `file`.
    """

    name: str
    path: str
    weight: float = 1.0
    text_field: str = "text"
    split: Literal["file", "paragraph", "line"] = "file"
    document_bytes: int = 1 << 16

    def __post_init__(self) -> None:
        _check_source(self)
        _require(
            self.text_field != "",
            f"Source.text_field of {self.name!r} is empty: name the field that holds the text.",
        )
        _require(
            self.split in ("file", "paragraph", "line"),
            f"Source.split of {self.name!r} is {self.split!r}: use 'file', 'paragraph' or 'line'.",
        )
        _require(
            self.document_bytes >= 64,
            f"Source.document_bytes of {self.name!r} is {self.document_bytes}: use 64 or more.",
        )


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer to train or load.

    Attributes:
        kind: `sentencepiece` trains byte-pair encoding with byte fallback on the sources; `bytes`
          uses the 256 bytes and needs no training; `hub` loads a checkpoint's tokenizer.
        vocab_size: size of a SentencePiece vocabulary, including special tokens. The other kinds
          ignore it, and `bytes` always has 260; the size of a model's embedding must come from the
          tokenizer, not from this config.
        path: the folder of a Hugging Face checkpoint, for kind `hub`.
        symbols: strings that always become one token (such as turn markers). They remain ordinary
          text: every occurrence is encoded this way and decodes to itself.
        sample_bytes: approximate amount of training text, sampled from all sources and files,
            whatever their weights.
    """

    kind: Literal["sentencepiece", "bytes", "hub"] = "sentencepiece"
    vocab_size: int = 4096
    path: str = ""
    symbols: tuple[str, ...] = ()
    sample_bytes: int = 32 << 20

    def __post_init__(self) -> None:
        _require(
            self.kind in ("sentencepiece", "bytes", "hub"),
            f"TokenizerConfig.kind is {self.kind!r}: use 'sentencepiece', 'bytes' or 'hub'.",
        )
        _require(
            (self.kind == "hub") == (self.path != ""),
            f"TokenizerConfig.path is {self.path!r} and kind is {self.kind!r}: kind 'hub' needs "
            "the folder of a checkpoint, and the other kinds take none.",
        )
        _require(
            self.kind == "sentencepiece" or not self.symbols,
            f"TokenizerConfig.symbols is {self.symbols!r}, but only a tokenizer that is trained "
            "gets symbols: use kind='sentencepiece' or leave them out.",
        )
        _require(
            all(self.symbols) and len(set(self.symbols)) == len(self.symbols),
            f"TokenizerConfig.symbols is {self.symbols!r}: use different strings, none empty.",
        )
        smallest = RESERVED_PIECES + len(self.symbols) + 1
        _require(
            self.kind != "sentencepiece" or self.vocab_size >= smallest,
            f"TokenizerConfig.vocab_size is {self.vocab_size}, but special tokens, bytes and "
            f"symbols alone fill {smallest - 1}: use more (512 for toys, otherwise 4096 to 65536).",
        )
        _require(
            self.sample_bytes > 0,
            f"TokenizerConfig.sample_bytes is {self.sample_bytes}: use a positive number.",
        )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Everything `prepare` needs to turn sources into tokenised shards.

    Attributes:
        sources: the corpora, at least one, with different names.
        tokenizer: the tokenizer to train or load.
        directory: folder of the prepared data; "" leaves the choice to the caller.
        validation_share: share of documents to hold out, chosen by a hash of their text.
        max_rejected_share: `prepare` fails if more than this share of a source is malformed.
        shard_tokens: a shard is closed once it holds this many tokens.
        mixture: how the sources' weights become shares; it does not affect the shards.

        cleaning: steps applied to the text before it is tokenised.
    """

    sources: tuple[Source, ...] = ()
    tokenizer: TokenizerConfig = TokenizerConfig()
    directory: str = ""
    validation_share: float = 0.01
    max_rejected_share: float = 0.01
    shard_tokens: int = 1 << 26
    mixture: MixtureConfig = MixtureConfig()

    cleaning: CleaningConfig = CleaningConfig()

    def __post_init__(self) -> None:
        _check_shares(self)


@dataclasses.dataclass(frozen=True)
class ExampleSource:
    """A set of fine-tuning examples: files of records under one name.

    Attributes:
        name: in manifests, weights and messages; letters, digits, `_` and `-`.
        path: a file, a folder (searched recursively) or a glob of `.jsonl` or `.ndjson`, optionally
          followed by `.gz` or `.zst`; or `.parquet`.
        weight: the source's share of the training *tokens*, relative to the other sources' weights;
          0 leaves it out of training. A source smaller than its share is repeated sooner.
        form: form of `sft` records; `auto` decides for each record by its fields.
          The other kinds have one form each.
        fields: non-default locations of a record's parts, as `part:field`, such as
          `output:answer`.
    """

    name: str
    path: str
    weight: float = 1.0
    form: Literal["auto", "text", "instruction", "conversation"] = "auto"
    fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_source(self)
        _require(
            self.form in ("auto", "text", "instruction", "conversation"),
            f"ExampleSource.form of {self.name!r} is {self.form!r}: use 'auto', 'text', "
            "'instruction' or 'conversation'.",
        )
        parts = [entry.partition(":")[0] for entry in self.fields]
        for entry in self.fields:
            part, _, field = entry.partition(":")
            _require(
                part in PARTS and field != "",
                f"ExampleSource.fields of {self.name!r} has {entry!r}: use 'part:field' with a "
                f"part of {', '.join(PARTS)}.",
            )
        _require(
            len(set(parts)) == len(parts),
            f"ExampleSource.fields of {self.name!r} names a part twice: {self.fields}.",
        )


@dataclasses.dataclass(frozen=True)
class ExampleConfig:
    """Everything `prepare_examples` needs to turn sources into tokenised examples.

    Attributes:
        sources: the sets of examples, at least one, with different names.
        kind: kind of example. `sft`: a text, an instruction with its answer, or a conversation;
          `classification`: a text or a pair, and its label; `comparison`: a prompt and answers
          from best to worst; `prompt`: a prompt to answer, with the fields needed to judge the
          answer; `judged`: a prompt, an answer, and whether it is good.
        directory: folder of the prepared examples; "" leaves the choice to the caller.
        template: the chat template: `plain` for any tokenizer, `chatml` for one with its markers,
          `joined` for a prompt and its continuation without markers; the path of a Jinja file; ""
          for the tokenizer's own. Texts and classification need none.
        train_on: which answers of a conversation are trained in `sft`.
        max_length: maximum tokens of a sequence; longer ones are cut. A row must have room for all
          sequences of a comparison; entry points lower it to what a row holds.
        target_share: share of `max_length` that a target may fill before it is cut. A sequence that
          is too long first loses the oldest turns of its prompt, then the prompt's first tokens,
          and only when the prompt fits the rest of `max_length`, the target's last tokens.
        labels: label names by number; if empty, those that occur, sorted.
        validation_share: share of examples to hold out.
        split: how they are chosen. `hash`: by a hash of the prompt alone; `stratified`: the same
          share of every label; `grouped`: whole groups with equal `split_field`; `time`: the latest
          by `split_field`.
        split_field: the field that holds an example's group, or its time (a number or ISO 8601).
        split_seed: seed of the choice.
        folds: instead of a share, hold out one of this many folds, by `hash`, `stratified` or
          `grouped`; 0 for a share.
        fold: index of the fold to hold out.
        max_rejected_share: `prepare_examples` fails if more than this share of a source is
          malformed or leaves nothing to train on.
        shard_tokens: a shard is closed once it holds this many tokens.
        mixture: how the sources' weights become shares; it does not affect the shards.
    """

    sources: tuple[ExampleSource, ...] = ()
    kind: Kind = "sft"
    directory: str = ""
    template: str = "plain"
    train_on: Literal["answers", "last_answer"] = "answers"
    max_length: int = 1024
    target_share: float = 0.75
    labels: tuple[str, ...] = ()
    validation_share: float = 0.1
    split: Literal["hash", "stratified", "grouped", "time"] = "hash"
    split_field: str = ""
    split_seed: int = 0
    folds: int = 0
    fold: int = 0
    max_rejected_share: float = 0.01
    shard_tokens: int = 1 << 26
    mixture: MixtureConfig = MixtureConfig()

    def __post_init__(self) -> None:
        _check_shares(self)
        for name, choices in (
            ("kind", KINDS),
            ("train_on", ("answers", "last_answer")),
            ("split", ("hash", "stratified", "grouped", "time")),
        ):
            value = getattr(self, name)
            _require(
                value in choices,
                f"ExampleConfig.{name} is {value!r}: use one of {', '.join(choices)}.",
            )
        _require(
            self.max_length >= SHORTEST,
            f"ExampleConfig.max_length is {self.max_length}: use {SHORTEST} or more.",
        )
        _require(
            0 < self.target_share <= 1,
            f"ExampleConfig.target_share is {self.target_share}: use more than 0, up to 1.",
        )
        _require(
            len(set(self.labels)) == len(self.labels),
            f"ExampleConfig.labels is {self.labels!r}: use different names.",
        )
        self._check_split()

    def _check_split(self) -> None:
        _require(
            (self.split in ("grouped", "time")) == (self.split_field != ""),
            f"ExampleConfig.split is {self.split!r} with split_field={self.split_field!r}: name "
            "the field for 'grouped' and 'time', and only for these.",
        )
        _require(
            self.split != "stratified" or self.kind in ("classification", "judged"),
            f"ExampleConfig.split is 'stratified', but examples of kind {self.kind!r} have no "
            "labels: use 'hash'.",
        )
        _require(
            self.split_seed >= 0, f"ExampleConfig.split_seed is {self.split_seed}: use 0 or more."
        )
        _require(
            self.folds != 1 and 0 <= self.fold < max(self.folds, 1),
            f"ExampleConfig.fold is {self.fold} with folds={self.folds}: use 2 folds or more and "
            "number them from 0, or leave both 0.",
        )
        _require(
            not (self.folds and self.split == "time"),
            "ExampleConfig.folds cannot be ordered by time: use another split, or a share.",
        )


def _check_source(source: Source | ExampleSource) -> None:
    kind = type(source).__name__
    _require(
        re.fullmatch(r"[A-Za-z0-9_-]+", source.name) is not None,
        f"{kind}.name is {source.name!r}: use letters, digits, '_' and '-' only, because it "
        "becomes part of file names.",
    )
    _require(source.path != "", f"{kind}.path of {source.name!r} is empty: name a file or folder.")
    _require(
        0 <= source.weight < float("inf"),
        f"{kind}.weight of {source.name!r} is {source.weight}: use a number that is 0 or more.",
    )


def _check_shares(settings: DataConfig | ExampleConfig) -> None:
    kind = type(settings).__name__
    names = [source.name for source in settings.sources]
    _require(
        len(set(names)) == len(names),
        f"{kind}.sources has a name twice: {names}. Give every source its own.",
    )
    _require(
        0 <= settings.validation_share < 1,
        f"{kind}.validation_share is {settings.validation_share}: use at least 0 and below 1.",
    )
    _require(
        0 <= settings.max_rejected_share <= 1,
        f"{kind}.max_rejected_share is {settings.max_rejected_share}: use 0 to 1.",
    )
    _require(
        settings.shard_tokens > 0,
        f"{kind}.shard_tokens is {settings.shard_tokens}: use a positive number.",
    )
