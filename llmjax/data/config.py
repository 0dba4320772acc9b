"""What to read, how to cut it into tokens, and what to accept: the settings of the data floor."""

import dataclasses
import re
from typing import Literal

# Room that a SentencePiece vocabulary needs before its first learned piece:
# <pad>, <s>, </s>, <unk> and the 256 bytes it falls back to.
RESERVED_PIECES = 4 + 256


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclasses.dataclass(frozen=True)
class Source:
    """One corpus: files of documents under one name.

    Attributes:
        name: the source's name in manifests, weights and messages; letters, digits, `_` and `-`.
        path: a file, a folder (searched recursively) or a glob. The suffix says the format:
          `.txt`, `.text`, `.md`, `.jsonl` or `.ndjson`, each also with `.gz` or `.zst` behind it,
          or `.parquet`.
        weight: the source's share of the training *tokens*, relative to the other sources' weights;
          0 leaves it out of training. A source smaller than its share is repeated sooner.
        text_field: the field (JSONL) or column (Parquet) that holds a document's text.
        split: what a document is in plain text. `file`: a whole file, cut at a line's end wherever
          it passes `document_bytes`, so that files of any size stream; `paragraph`: what stands
          between blank lines; `line`: a line that is not blank.
        document_bytes: the longest document of a plain text file, in bytes.
    """

    name: str
    path: str
    weight: float = 1.0
    text_field: str = "text"
    split: Literal["file", "paragraph", "line"] = "file"
    document_bytes: int = 1 << 16

    def __post_init__(self) -> None:
        _require(
            re.fullmatch(r"[A-Za-z0-9_-]+", self.name) is not None,
            f"Source.name is {self.name!r}: use letters, digits, '_' and '-' only, because it "
            "becomes part of file names.",
        )
        _require(self.path != "", f"Source.path of {self.name!r} is empty: name a file or folder.")
        _require(
            0 <= self.weight < float("inf"),
            f"Source.weight of {self.name!r} is {self.weight}: use a number that is 0 or more.",
        )
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
    """How text becomes tokens.

    Attributes:
        kind: `sentencepiece` trains byte-pair encoding with byte fallback on the sources; `bytes`
          uses the 256 bytes themselves and needs no training; `hub` reads a checkpoint's.
        vocab_size: tokens of a SentencePiece vocabulary, special ones included. The other kinds
          ignore it, and `bytes` always has 260; ask the tokenizer, not this config, for the size
          of a model's table.
        path: the folder of a Hugging Face checkpoint, whose tokenizer kind `hub` takes.
        symbols: strings that always become one token each (turn marks, for instance). They stay
          ordinary text: wherever they occur, they are encoded so, and they decode to themselves.
        sample_bytes: training reads at most about this much text, taken from all sources and files.
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
            "the folder of a checkpoint, and the other kinds read none.",
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
            f"symbols alone fill {smallest - 1}: use more (512 for toys, 4096 to 65536 else).",
        )
        _require(
            self.sample_bytes > 0,
            f"TokenizerConfig.sample_bytes is {self.sample_bytes}: use a positive number.",
        )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Everything `prepare` needs to turn sources into tokenised shards.

    Attributes:
        sources: the corpora, at least one, under different names.
        tokenizer: how text becomes tokens.
        directory: where the prepared data lie; "" leaves the choice to the caller.
        validation_share: the share of documents held out, chosen by a hash of their text.
        max_rejected_share: `prepare` fails when more than this share of a source is malformed.
        shard_tokens: a shard is closed once it holds this many tokens.
    """

    sources: tuple[Source, ...] = ()
    tokenizer: TokenizerConfig = TokenizerConfig()
    directory: str = ""
    validation_share: float = 0.01
    max_rejected_share: float = 0.01
    shard_tokens: int = 1 << 26

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        _require(
            len(set(names)) == len(names),
            f"DataConfig.sources has a name twice: {names}. Give every source its own.",
        )
        _require(
            0 <= self.validation_share < 1,
            f"DataConfig.validation_share is {self.validation_share}: use at least 0 and below 1.",
        )
        _require(
            0 <= self.max_rejected_share <= 1,
            f"DataConfig.max_rejected_share is {self.max_rejected_share}: use 0 to 1.",
        )
        _require(
            self.shard_tokens > 0,
            f"DataConfig.shard_tokens is {self.shard_tokens}: use a positive number.",
        )
