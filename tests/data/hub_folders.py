"""Small tokenizers in the folders that transformers writes, made on the fly."""

import json
import pathlib
from typing import Any, Literal

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = ["The storm of seas, la tempête\tnaît", "How are you? I am fine.", "日本 42 def f(x):\n  x"]
SPECIAL = (
    "<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|begin|>", "<|header|>", "<|/header|>",
    "<|eot|>", "<turn>", "</turn>", "[INST]", "[/INST]",
)  # fmt: skip

Space = Literal["never", "first", "always", "prepend"]


def byte_level() -> tokenizers.Tokenizer:
    """Byte-pair encoding of bytes, as GPT-2, Llama 3 and Qwen have it."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    return made


def sentencepiece(space: Space) -> tokenizers.Tokenizer:
    """Byte-pair encoding that falls back to bytes, as Llama 2, Mistral and Gemma have it."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps: list[Any] = [normalizers.Replace(" ", "\u2581")]
    if space == "prepend":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), *steps])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=space, split=False)
    specials = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=specials, show_progress=False)
    # Only ASCII, so that the rest falls back.
    made.train_from_iterator([TEXTS[1], "the storm of seas", "def f(x) 42"] * 3, trainer)
    fields = json.loads(made.to_str())
    fields["added_tokens"] = [t for t in fields["added_tokens"] if t["content"] in SPECIAL]
    return tokenizers.Tokenizer.from_str(json.dumps(fields))


def with_bos(made: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """As it was, but it puts <s> in front of a text."""
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return made


def write(
    directory: pathlib.Path,
    made: tokenizers.Tokenizer,
    *,
    template: str = "",
    generation: dict[str, Any] | None = None,
    **settings: Any,
) -> pathlib.Path:
    """The folder of a checkpoint, as far as the tokenizer goes."""
    directory.mkdir(parents=True, exist_ok=True)
    made.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | settings
    settings = {name: value for name, value in settings.items() if value is not None}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    if template:
        (directory / "chat_template.jinja").write_text(template)
    if generation:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory
