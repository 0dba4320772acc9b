"""Reads a `tokenizer.json`: the bytes of its pieces, and how it changes text."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

_SPACE = "\u2581"  # SentencePiece's symbol for a space
# The bytes that occur in UTF-8; no others need a piece.
_UTF8 = frozenset(range(256)) - {0xC0, 0xC1, *range(0xF5, 0x100)}
_PARTS = ("normalizer", "pre_tokenizer", "decoder")


class Pieces:
    """The pieces of a vocabulary as bytes.

    Args:
        fields: the JSON object in the file.

    Attributes:
        space: when a space is added before text: "always" (to each stretch between added tokens),
            "first" (only at the start of a text), or "never".
        exact: whether the pieces of every text join to the text, U+2581 aside.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._model = fields["model"]
        self._parts = {name: list(_flat(fields.get(name))) for name in _PARTS}
        changes = [*self._parts["normalizer"], *self._parts["pre_tokenizer"]]
        self.space = _space(changes)
        self._byte_level = any(part["type"] == "ByteLevel" for part in changes)
        vocabulary = self._model["vocab"]
        if self._byte_level:
            whole = all(c in vocabulary for c, b in _byte_characters().items() if b in _UTF8)
        else:
            known = vocabulary if isinstance(vocabulary, dict) else {p for p, _ in vocabulary}
            fallback = self._model.get("byte_fallback", False)
            whole = fallback and all(f"<0x{byte:02X}>" in known for byte in _UTF8)
        self._fallback = whole and not self._byte_level
        kept = all(_only_marks_spaces(part) for part in self._parts["normalizer"])
        plain = not any(
            (token["lstrip"] or token["rstrip"]) and not token["special"]
            for token in fields.get("added_tokens") or []
        )
        self.exact = bool(whole and kept and plain and self.space == "never")

    def bytes_of(self, piece: str) -> bytes:
        """The bytes that a piece adds to a text; approximate for inexact models."""
        if self._byte_level:
            table = _byte_characters()
            known = all(character in table for character in piece)
            return bytes(table[character] for character in piece) if known else piece.encode()
        if self._fallback and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        if self._model.get("type") == "WordPiece":
            prefix = self._model.get("continuing_subword_prefix", "##")
            inner = piece.startswith(prefix) and piece != prefix
            return (piece.removeprefix(prefix) if inner else " " + piece).encode()
        return piece.replace(_SPACE, " ").encode()


def without_space(fields: Any) -> Any:
    """A copy of the file's fields for a tokenizer that adds no space before text."""
    if isinstance(fields, list):
        return [without_space(item) for item in fields]
    if not isinstance(fields, dict):
        return fields
    if fields.get("type") == "Prepend":
        return {"type": "Sequence", "normalizers": []}
    # Vocabularies are large and contain no such settings.
    copy = {
        name: item if name in ("vocab", "merges") else without_space(item)
        for name, item in fields.items()
    }
    if fields.get("type") == "Metaspace":
        copy["prepend_scheme"] = "never"
    if fields.get("type") in ("Metaspace", "ByteLevel") and "add_prefix_space" in fields:
        copy["add_prefix_space"] = False
    return copy


def _flat(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The parts of a normalizer, pre-tokenizer or decoder, with sequences flattened."""
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
    for items in ("normalizers", "pretokenizers", "decoders"):
        for item in part.get(items) or []:
            yield from _flat(item)


def _space(changes: list[Mapping[str, Any]]) -> str:
    for part in changes:
        if part["type"] == "Prepend":
            return "always"
        if part["type"] == "ByteLevel" and part.get("add_prefix_space", True):
            return "always"
        if part["type"] == "Metaspace":
            scheme = part.get("prepend_scheme")
            if scheme is None:
                scheme = "always" if part.get("add_prefix_space", True) else "never"
            return scheme
    return "never"


def _only_marks_spaces(normalizer: Mapping[str, Any]) -> bool:
    """Whether a normalizer only replaces spaces by SentencePiece's symbol."""
    if normalizer["type"] == "Replace":
        return normalizer["pattern"] == {"String": " "} and normalizer["content"] == _SPACE
    return normalizer["type"] in ("ByteLevel", "Prepend")


@functools.cache
def _byte_characters() -> Mapping[str, int]:
    """The characters that represent bytes in byte-level vocabularies (GPT-2's encoder.py).

    Printable bytes represent themselves; the others map, in order, to U+0100 and up.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + index): byte for index, byte in enumerate(others)}
