"""Tokenizers of Hugging Face checkpoints, through the package `tokenizers`.

Token ids are those of `transformers`. What a checkpoint leaves open follows common practice:
without a padding token, eos or else unk pads, and padding never reaches a loss. Documents begin
with the tokens that the tokenizer itself adds before a text, and end with eos or its separator.
"""

import hashlib
import importlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmjax.data.hub_pieces import Pieces, without_space
from llmjax.data.tokenizer import Tokenizer, utf8

MAIN_FILE = "tokenizer.json"
CONFIG_FILES = ("special_tokens_map.json", "tokenizer_config.json")  # the latter takes precedence
GENERATION_FILE = "generation_config.json"
TEMPLATE_FILE = "chat_template.jinja"
FILES = (MAIN_FILE, *CONFIG_FILES, GENERATION_FILE, TEMPLATE_FILE)

_MAX_BYTES = 100_000_000
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

_log = logging.getLogger(__name__)


class HubTokenizer(Tokenizer):
    """The tokenizer in a folder written by `transformers` or by `save`.

    The bytes of its pieces are exact for byte-level vocabularies and for those with byte fallback
    (which read U+2581 as a space), unless the tokenizer normalises text or adds a space before it;
    `exact` tells. Otherwise they are approximate: a WordPiece token that starts a word begins with
    a space, and an unknown character has no bytes.

    Args:
        directory: a folder with tokenizer.json and, optionally, tokenizer_config.json,
            special_tokens_map.json, generation_config.json and chat_template.jinja.

    Raises:
        FileNotFoundError: the folder has no tokenizer.json.
        ModuleNotFoundError: the package `tokenizers` is not installed.
        ValueError: a file is damaged, or no token can end a document.
    """

    kind = "hub"

    def __init__(self, directory: str | Path) -> None:
        directory = Path(directory)
        self._files = read_files(directory)
        settings = {k: v for name in CONFIG_FILES for k, v in self._read(directory, name).items()}
        self.names = {
            f"{role}_token": text for role in _ROLES if (text := _text(settings, f"{role}_token"))
        }
        try:
            fields = json.loads(self._files[MAIN_FILE])
            self._pieces_as_bytes = Pieces(fields)
            self._first = _backend(fields, self.names, settings)
            self._inner = self._first
            if self._pieces_as_bytes.space != "never":
                self._inner = _backend(without_space(fields), self.names, settings)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{directory / MAIN_FILE} is not a valid tokenizer: {error}"
            ) from error
        super().__init__(self._table())
        self.exact = self._pieces_as_bytes.exact
        self.chat_template = _chat_template(self._files, settings)
        self._read_special()
        self._assign(settings, self._read(directory, GENERATION_FILE), directory)

    @property
    def fingerprint(self) -> str:
        """Hash of tokenizer.json and of the roles of special tokens."""
        roles = [self.opening, self.eos_id, self.pad_id, self.mask_id, self.special_ids]
        return hashlib.sha256(self._files[MAIN_FILE] + json.dumps(roles).encode()).hexdigest()

    @property
    def opening(self) -> tuple[int, ...]:
        """The tokens that the tokenizer itself adds before a text."""
        return self._opening

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """The tokens of every text; the name of a special token is plain text."""
        del num_threads  # the package decides; TOKENIZERS_PARALLELISM=false makes it one thread
        return _encode(self._first, texts)

    def encode_parts(self, parts: Sequence[str]) -> list[list[int]]:
        """As `Tokenizer.encode_parts`; an added space comes only where the tokenizer puts it."""
        encoded: list[list[int]] = []
        last = None  # the previous token; None at the start
        for part in parts:
            ids: list[int] = []
            for text, special in self._split(part):
                if text:
                    after_added = last in self._added and self._pieces_as_bytes.space == "always"
                    opens = last is None or after_added
                    ids += _encode(self._first if opens else self._inner, [text])[0]
                if special is not None:
                    ids.append(special)
                last = ids[-1] if ids else last
            encoded.append(ids)
        return encoded

    def save(self, directory: str | Path) -> None:
        """Writes the checkpoint's own files unchanged, and the metadata."""
        for name, content in self._files.items():
            (Path(directory) / name).write_bytes(content)
        super().save(directory)

    def _read(self, directory: Path, name: str) -> dict[str, Any]:
        """The object in a file; empty if the file is missing."""
        from llmjax.hf.files import read_json  # imports jax, which text does not need

        return read_json(directory / name, _MAX_BYTES) if name in self._files else {}

    def _table(self) -> list[bytes]:
        """The bytes of every token, by id."""
        added = self._first.get_added_tokens_decoder()
        vocabulary = self._first.get_vocab(with_added_tokens=True)
        table = [b""] * (max(vocabulary.values()) + 1)
        for piece, token in vocabulary.items():
            if token not in added:
                table[token] = self._pieces_as_bytes.bytes_of(piece)
            elif not added[token].special:
                table[token] = piece.encode()
        return table

    def _read_special(self) -> None:
        """Finds the special tokens, and how to recognise them in a text."""
        added = self._first.get_added_tokens_decoder()
        self._added = frozenset(added)
        special = {token.content: i for i, token in added.items() if token.special}
        self.special_tokens, self.special_ids = special, tuple(sorted(special.values()))
        # A match may have white space around the token's own text.
        self._by_text = {name.strip(): i for name, i in special.items()} | special
        tokens = sorted((t for t in added.values() if t.special), key=lambda t: -len(t.content))
        patterns = (
            r"\s*" * token.lstrip + re.escape(token.content) + r"\s*" * token.rstrip
            for token in tokens
        )
        self._special = re.compile("|".join(patterns) or "(?!)")

    def _split(self, part: str) -> Iterator[tuple[str, int | None]]:
        """Yields texts, each with the special token that follows it."""
        at = 0
        for match in self._special.finditer(part):
            name = match[0] if match[0] in self._by_text else match[0].strip()
            yield part[at : match.start()], self._by_text[name]
            at = match.end()
        yield part[at:], None

    def _assign(
        self, settings: Mapping[str, Any], generation: Mapping[str, Any], directory: Path
    ) -> None:
        """Assigns roles to the special tokens."""
        found = {
            n: i for n, t in self.names.items() if (i := self.special_tokens.get(t)) is not None
        }
        before, behind = _around(self._first)
        bos = found.get("bos_token")
        if "add_bos_token" in settings and before in ((), (bos,)) and bos is not None:
            before = (bos,) if settings["add_bos_token"] else ()
        self._opening = before
        self.bos_id = before[0] if before else None
        ends = [
            i for i in (found.get("eos_token"), found.get("sep_token"), *behind) if i is not None
        ]
        if not ends:
            raise ValueError(
                f"the tokenizer in {str(directory)!r} has neither an eos nor a sep token, so "
                "nothing ends a document: name its eos_token in tokenizer_config.json."
            )
        self.eos_id = ends[0]
        self.mask_id = found.get("mask_token")
        pads = [found[f"{n}_token"] for n in ("pad", "eos", "unk") if f"{n}_token" in found]
        self.pad_id = (pads or ends)[0]
        stops = generation.get("eos_token_id")
        stops = [stops] if isinstance(stops, int) else stops or []
        self.stop_ids = tuple(dict.fromkeys((self.eos_id, *stops)))
        if "pad_token" not in found:
            _log.info("%s has no padding token: token %d pads", directory, self.pad_id)
        if not self.exact:
            _log.info(
                "%s: not every text equals its decoded tokens; bits per byte are approximate",
                directory,
            )


def read_files(directory: Path) -> dict[str, bytes]:
    """Reads the tokenizer's files in a checkpoint's folder, by name.

    Raises:
        FileNotFoundError: the folder has no tokenizer.json.
    """
    if not (directory / MAIN_FILE).is_file():
        raise FileNotFoundError(
            f"{str(directory)!r} has no {MAIN_FILE}, which holds a Hugging Face tokenizer. "
            "Name the folder of a checkpoint that has one, or let transformers write it: "
            "AutoTokenizer.from_pretrained(…).save_pretrained(…)."
        )
    return {n: (directory / n).read_bytes() for n in FILES if (directory / n).is_file()}


def _backend(fields: Any, names: Mapping[str, str], settings: Mapping[str, Any]) -> Any:
    """The package's tokenizer, plus the special tokens that other files define."""
    try:
        tokenizers = importlib.import_module("tokenizers")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "tokenizers of Hugging Face checkpoints need the package 'tokenizers': "
            "pip install 'llmjax[hf]'."
        ) from error
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(fields))
    except Exception as error:  # the package raises nothing more specific
        raise ValueError(str(error)) from error
    backend.no_truncation()
    backend.no_padding()
    there = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    decoder = settings.get("added_tokens_decoder") or {}
    for _, token in sorted(decoder.items(), key=lambda item: int(item[0])):
        if token["content"] not in there:
            backend.add_tokens([tokenizers.AddedToken(**token)])
    more = settings.get("additional_special_tokens") or settings.get("extra_special_tokens") or []
    texts = [_text({"": token}, "") for token in (more if isinstance(more, list) else [])]
    for text in (*names.values(), *filter(None, texts)):
        if text not in there or not there[text].special:
            backend.add_special_tokens(
                [tokenizers.AddedToken(text, special=True, normalized=False)]
            )
    backend.encode_special_tokens = True  # as text; `encode_parts` finds special tokens itself
    return backend


def _encode(backend: Any, texts: Sequence[str]) -> list[list[int]]:
    for text in texts:
        utf8(text)
    encoded = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encoded]


def _around(backend: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens that the tokenizer adds before and after a text."""
    bare = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a", add_special_tokens=True).ids
    begin = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return tuple(whole[:begin]), tuple(whole[begin + len(bare) :])


def _text(settings: Mapping[str, Any], name: str) -> str | None:
    """A token's text, which may be given as an object with properties."""
    value = settings.get(name)
    return value.get("content") if isinstance(value, Mapping) else value


def _chat_template(contents: Mapping[str, bytes], settings: Mapping[str, Any]) -> str:
    """The checkpoint's chat template, the default one of several; "" if there is none."""
    if TEMPLATE_FILE in contents:
        return contents[TEMPLATE_FILE].decode()
    template = settings.get("chat_template") or ""
    if isinstance(template, list):
        named = {item["name"]: item["template"] for item in template}
        return named.get("default", "")
    return template
