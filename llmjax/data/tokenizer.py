"""Lossless tokenizers: SentencePiece with byte fallback, or plain bytes.

Every tokenizer is a table of pieces: token i adds the bytes `pieces[i]` to the text, and special
tokens add none. Decoding concatenates them, so `decode(encode(text)) == text` for every text, and
the bytes of the tokens sum to the bytes of the text, the denominator of bits per byte.
`hub_tokenizer` reads those of Hugging Face checkpoints, not all of which are lossless: see `exact`.
"""

import abc
import codecs
import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import sentencepiece

from llmjax.data import config

PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
NUM_SPECIAL = 4

META_FILE = "tokenizer.meta.json"
MODEL_FILE = "tokenizer.model"

# SentencePiece writes a space as this character, so the character itself must bypass it.
_SPACE = "\u2581"
# Longer training sentences only cost time, since pieces never cross a word boundary.
_SENTENCE_CHARACTERS = 4096


class Tokenizer(abc.ABC):
    """The interface of a tokenizer.

    Attributes:
        kind: its name in `TokenizerConfig.kind`.
        pad_id: pads rows, never predicted. 0 in tokenizers trained here.
        bos_id: starts every document; None if nothing does. 1 in those trained here.
        eos_id: ends every document. 2 in those trained here.
        mask_id: replaces a token hidden from a model; None if there is none. 3 in those trained
            here, which is SentencePiece's unknown token and never occurs otherwise, since every
            text can be encoded.
        special_ids: tokens that never occur in encoded text.
        special_tokens: spellings of special tokens in texts for `encode_parts`, and their ids.
        names: names of special tokens in chat templates, such as `bos_token`, and their spellings.
        stop_ids: tokens that end generated text, including `eos_id`.
        chat_template: Jinja source that came with the tokenizer; "" for none.
        exact: whether the pieces of every text's tokens join to the text.
    """

    kind: str
    pad_id: int = PAD_ID
    bos_id: int | None = BOS_ID
    eos_id: int = EOS_ID
    mask_id: int | None = UNK_ID
    special_ids: tuple[int, ...] = (PAD_ID, BOS_ID, EOS_ID, UNK_ID)
    special_tokens: Mapping[str, int] = MappingProxyType({"<s>": BOS_ID, "</s>": EOS_ID})
    names: Mapping[str, str] = MappingProxyType({"bos_token": "<s>", "eos_token": "</s>"})
    stop_ids: tuple[int, ...] = (EOS_ID,)
    chat_template: str = ""
    exact: bool = True

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = tuple(pieces)

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hex digest that differs between tokenizers that encode differently."""

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """The tokens of every text, without bos and eos; uses several threads if that pays.

        Raises:
            ValueError: a text is not valid Unicode.
        """

    def encode(self, text: str) -> list[int]:
        """The text's tokens, without bos and eos. Raises ValueError for invalid Unicode."""
        return self.encode_batch([text])[0]

    def encode_parts(self, parts: Sequence[str]) -> list[list[int]]:
        """Encodes each part of a text in which special tokens are written out.

        No token crosses from one part into the next, and a special token's name that is split over
        parts is plain text. No bos or eos is added.

        Raises:
            ValueError: a part is not valid Unicode.
        """
        names = re.compile("(" + "|".join(map(re.escape, self.special_tokens)) + ")")
        split = [names.split(part) for part in parts]
        texts = iter(self.encode_batch([text for pieces in split for text in pieces[::2]]))
        encoded = []
        for pieces in split:
            ids = next(texts)
            for name in pieces[1::2]:
                ids = [*ids, self.special_tokens[name], *next(texts)]
            encoded.append(ids)
        return encoded

    @property
    def opening(self) -> tuple[int, ...]:
        """The tokens before a document's or a prompt's own: bos, if any."""
        return () if self.bos_id is None else (self.bos_id,)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens; invalid UTF-8 becomes U+FFFD, and special tokens add nothing."""
        return b"".join(map(self.piece, ids)).decode(errors="replace")

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to the text. Raises ValueError for an unknown token."""
        if not 0 <= token < len(self._pieces):
            raise ValueError(
                f"token {token} is not in the vocabulary: it has 0 to {len(self._pieces) - 1}. "
                "Were these ids made with another tokenizer?"
            )
        return self._pieces[token]

    @property
    def vocab_size(self) -> int:
        """Number of tokens V, special ones included."""
        return len(self._pieces)

    @property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each token adds to the text, int32 [V]; 0 for special tokens.

        If the tokenizer is not `exact`, they sum only approximately to the bytes of a text.
        """
        return np.array([len(piece) for piece in self._pieces], np.int32)

    @property
    def starts_word(self) -> np.ndarray:
        """Whether each token starts a word, bool [V]: its piece begins with white space."""
        return np.array([piece[:1].isspace() for piece in self._pieces], bool)

    def save(self, directory: str | Path) -> None:
        """Writes the files that `load_tokenizer` reads."""
        meta = {
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "fingerprint": self.fingerprint,
        }
        (Path(directory) / META_FILE).write_text(json.dumps(meta, indent=2) + "\n")


class ByteTokenizer(Tokenizer):
    """One token per byte: 4 special tokens, then the 256 bytes in order."""

    kind = "bytes"

    def __init__(self) -> None:
        super().__init__([b""] * NUM_SPECIAL + [bytes([byte]) for byte in range(256)])

    @property
    def fingerprint(self) -> str:
        """The same for all byte tokenizers."""
        return hashlib.sha256(b"llmjax bytes 4+256").hexdigest()

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """Every text's UTF-8 bytes; faster than starting a thread."""
        del num_threads
        return [[byte + NUM_SPECIAL for byte in utf8(text)] for text in texts]


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model with byte fallback (Kudo and Richardson 2018, arXiv:1808.06226).

    Args:
        model: the serialised model, as in a `tokenizer.model` file.

    Raises:
        ValueError: the model cannot encode every text, or its special tokens have other ids.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        processor = self._processor
        special = [processor.pad_id(), processor.bos_id(), processor.eos_id(), processor.unk_id()]
        if special != [PAD_ID, BOS_ID, EOS_ID, UNK_ID]:
            raise ValueError(
                f"the SentencePiece model has pad, bos, eos, unk at {special}, but they must be at "
                f"{[PAD_ID, BOS_ID, EOS_ID, UNK_ID]}. Train it with `tokenizer.train`; a "
                "checkpoint's own is read from its tokenizer.json (TokenizerConfig.kind='hub')."
            )
        self._escape = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
        if UNK_ID in self._escape:
            raise ValueError(
                "the SentencePiece model has no byte fallback, so it cannot encode every text. "
                "Train it with `tokenizer.train`."
            )
        super().__init__([self._bytes_of(token) for token in range(processor.get_piece_size())])

    @property
    def fingerprint(self) -> str:
        """The hash of the model file."""
        return hashlib.sha256(self._model).hexdigest()

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """The tokens of every text, without bos and eos. Raises ValueError for invalid Unicode."""
        for text in texts:
            utf8(text)
        parts = [text.split(_SPACE) for text in texts]
        flat = list(itertools.chain.from_iterable(parts))
        encoded = iter(self._processor.encode(flat, num_threads=num_threads))
        return [self._joined(itertools.islice(encoded, len(part))) for part in parts]

    def save(self, directory: str | Path) -> None:
        """Writes `tokenizer.model` and the metadata."""
        (Path(directory) / MODEL_FILE).write_bytes(self._model)
        super().save(directory)

    def _joined(self, parts: Iterator[list[int]]) -> list[int]:
        """Joins the tokens of the parts between `_SPACE` characters, which become bytes."""
        ids = next(parts)
        for part in parts:
            ids += self._escape + part
        return ids

    def _bytes_of(self, token: int) -> bytes:
        piece: str = self._processor.id_to_piece(token)
        if token < NUM_SPECIAL:
            return b""
        if self._processor.is_byte(token):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(_SPACE, " ").encode()


class StreamDecoder:
    """Decodes tokens as they arrive, holding back the bytes of incomplete characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that these tokens complete, possibly empty."""
        return self._utf8.decode(b"".join(map(self._tokenizer.piece, ids)))

    def finish(self) -> str:
        """U+FFFD if the tokens ended inside a character, otherwise ""."""
        return self._utf8.decode(b"", final=True)


def train(settings: config.TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Trains a tokenizer on texts; the same texts in the same order give the same tokenizer.

    Kinds `hub` and `bytes` do not read the texts.

    Raises:
        FileNotFoundError: `settings.path` has no tokenizer.json.
        ModuleNotFoundError: kind `hub` needs the package `tokenizers`, which is not installed.
        ValueError: there is no text, or too little for the vocabulary size.
    """
    if settings.kind == "bytes":
        return ByteTokenizer()
    if settings.kind == "hub":
        from llmjax.data.hub_tokenizer import HubTokenizer  # which imports this module

        return HubTokenizer(settings.path)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=settings.vocab_size,
            user_defined_symbols=[symbol.replace(" ", _SPACE) for symbol in settings.symbols],
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=4 * _SENTENCE_CHARACTERS,
            pad_id=PAD_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            num_threads=1,  # counting byte pairs gains nothing from more
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rsplit("] ", 1)[-1].strip() or "there is none."
        raise ValueError(
            f"cannot train a SentencePiece vocabulary of {settings.vocab_size} tokens on this "
            f"text: {reason} Give more text, or change TokenizerConfig.vocab_size."
        ) from error
    return SentencePieceTokenizer(model.getvalue())


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Loads the tokenizer that `prepare` (or `Tokenizer.save`) left in a directory.

    The folder of a Hugging Face checkpoint works too.

    Raises:
        FileNotFoundError: the directory has no tokenizer.
        ModuleNotFoundError: it is a checkpoint's, and the package `tokenizers` is not installed.
        ValueError: its files do not match.
    """
    from llmjax.data import hub_tokenizer  # which imports this module

    path = Path(directory) / META_FILE
    if not path.is_file():
        if (path.parent / hub_tokenizer.MAIN_FILE).is_file():
            return hub_tokenizer.HubTokenizer(directory)
        raise FileNotFoundError(
            f"no tokenizer in {str(directory)!r} ({META_FILE} is missing). Prepare the data there "
            "first, or name the directory that holds it."
        )
    meta = json.loads(path.read_text())
    tokenizer: Tokenizer
    if meta["kind"] == "bytes":
        tokenizer = ByteTokenizer()
    elif meta["kind"] == "hub":
        tokenizer = hub_tokenizer.HubTokenizer(directory)
    else:
        tokenizer = SentencePieceTokenizer((path.parent / MODEL_FILE).read_bytes())
    if tokenizer.fingerprint != meta["fingerprint"]:
        raise ValueError(
            f"the tokenizer in {str(directory)!r} is not the one its {META_FILE} describes. "
            "Restore the files or prepare the data again."
        )
    return tokenizer


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _SENTENCE_CHARACTERS):
                yield line[start : start + _SENTENCE_CHARACTERS]


def utf8(text: str) -> bytes:
    """The text's UTF-8 bytes. Raises ValueError for invalid Unicode: an unpaired surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text is not valid Unicode: half a surrogate pair at character {error.start}. "
            "Drop or replace it."
        ) from error
