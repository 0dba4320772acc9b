"""Tokenizers of checkpoints: the package's own tokens, special tokens by role, exact bytes."""

import importlib
import json
import pathlib
import re

import hypothesis
import pytest
import tokenizers
from hypothesis import strategies

from llmjax import data
from llmjax.data import hub_tokenizer, tokenizer
from llmjax.data.hub_tokenizer import HubTokenizer
from tests.data import hub_folders

KINDS = {
    "bytes": hub_folders.byte_level,
    **{
        space: lambda space=space: hub_folders.with_bos(hub_folders.sentencepiece(space))
        for space in ("never", "first", "always", "prepend")
    },
}
PIECES = strategies.sampled_from(
    [" ", "  ", "\n", "The storm", "seas", "é", "日本", "😀", "\u0301", *hub_folders.SPECIAL[1:]]
) | strategies.text(max_size=4).filter(lambda text: "\u2581" not in text)
ANY_TEXT = strategies.lists(PIECES, max_size=8).map("".join)


@pytest.fixture(scope="module", params=KINDS)
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    made = KINDS[request.param]()
    return hub_folders.write(tmp_path_factory.mktemp("hub") / request.param, made)


@pytest.fixture(scope="module")
def hub(folder: pathlib.Path) -> HubTokenizer:
    return HubTokenizer(folder)


@pytest.fixture(scope="module")
def package(folder: pathlib.Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@hypothesis.given(text=ANY_TEXT)
@hypothesis.settings(deadline=None)
def test_a_text_with_special_tokens_is_encoded_as_the_package_does(
    hub: HubTokenizer, package: tokenizers.Tokenizer, text: str
) -> None:
    assert hub.encode_parts([text]) == [package.encode(text, add_special_tokens=False).ids]


@hypothesis.given(text=ANY_TEXT)
@hypothesis.settings(deadline=None)
def test_a_text_is_encoded_as_the_package_does_and_has_no_special_token(
    hub: HubTokenizer, package: tokenizers.Tokenizer, text: str
) -> None:
    ids = hub.encode(text)
    assert not set(ids) & set(hub.special_ids)
    if not re.search("|".join(map(re.escape, hub_folders.SPECIAL)), text):
        assert ids == package.encode(text, add_special_tokens=False).ids


@hypothesis.given(parts=strategies.lists(ANY_TEXT, max_size=4))
@hypothesis.settings(deadline=None)
def test_pieces_join_to_the_text_whatever_its_parts(hub: HubTokenizer, parts: list[str]) -> None:
    parts = [re.sub("|".join(map(re.escape, hub_folders.SPECIAL)), "", part) for part in parts]
    encoded = hub.encode_parts(parts)
    text = hub.decode([token for ids in encoded for token in ids])
    assert text in ("".join(parts), " " + "".join(parts))
    assert text == "".join(parts) or not hub.exact
    assert hub.token_bytes[[t for ids in encoded for t in ids]].sum() == len(text.encode())


def test_only_a_tokenizer_that_adds_no_space_is_exact(tmp_path: pathlib.Path) -> None:
    for name, make in KINDS.items():
        read = HubTokenizer(hub_folders.write(tmp_path / name, make()))
        assert read.exact == (name in ("bytes", "never"))
    made = hub_folders.byte_level()
    made.normalizer = tokenizers.normalizers.NFC()
    assert not HubTokenizer(hub_folders.write(tmp_path / "nfc", made)).exact


def test_roles_of_special_tokens(tmp_path: pathlib.Path) -> None:
    made = hub_folders.byte_level()
    bare = HubTokenizer(
        hub_folders.write(tmp_path / "a", made, generation={"eos_token_id": [2, 8]})
    )
    assert (bare.opening, bare.bos_id, bare.eos_id, bare.pad_id) == ((), None, 2, 2)
    assert bare.mask_id is None
    assert bare.stop_ids == (2, 8)
    assert bare.names == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    opened = hub_folders.with_bos(made)
    full = HubTokenizer(
        hub_folders.write(
            tmp_path / "b", opened, pad_token="<unk>", mask_token={"content": "<turn>"}
        )
    )
    assert (full.opening, full.bos_id, full.pad_id, full.mask_id) == ((1,), 1, 0, 9)
    switched = hub_folders.write(tmp_path / "c", opened, add_bos_token=False)
    assert HubTokenizer(switched).opening == ()
    assert len({bare.fingerprint, full.fingerprint, HubTokenizer(switched).fingerprint}) == 3


def test_a_bert_opens_and_ends_documents_with_its_own_tokens(tmp_path: pathlib.Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##do", "it", "."]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(words[:5])
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.enable_truncation(2)
    made.enable_padding(length=9)
    read = HubTokenizer(
        hub_folders.write(
            tmp_path, made, bos_token=None, eos_token=None, unk_token="[UNK]",
            sep_token="[SEP]", cls_token="[CLS]", pad_token="[PAD]", mask_token="[MASK]",
        )
    )  # fmt: skip
    assert (read.opening, read.eos_id, read.pad_id, read.mask_id) == ((2,), 3, 0, 4)
    assert read.encode("undo it.") == [5, 6, 7, 8]
    assert read.starts_word.tolist() == [False] * 5 + [True, False, True, True]
    assert not read.exact


def test_tokens_that_only_the_settings_have_are_added(tmp_path: pathlib.Path) -> None:
    made = hub_folders.byte_level()
    size = made.get_vocab_size()
    read = HubTokenizer(
        hub_folders.write(
            tmp_path, made, pad_token="<fill>", additional_special_tokens=["<more>", "</turn>"]
        )
    )
    assert (read.pad_id, read.vocab_size) == (size, size + 2)
    assert read.encode_parts(["<more>"]) == [[size + 1]]


def test_white_space_beside_a_special_token_is_taken_as_it_asks(tmp_path: pathlib.Path) -> None:
    made = hub_folders.byte_level()
    made.add_special_tokens([tokenizers.AddedToken("<|wide|>", lstrip=True, rstrip=True)])
    hub = HubTokenizer(hub_folders.write(tmp_path, made))
    text = "seas \n<|wide|>\n storm <|eot|> x"
    assert hub.encode_parts([text]) == [made.encode(text, add_special_tokens=False).ids]


def test_a_special_token_may_be_white_space(tmp_path: pathlib.Path) -> None:
    made = hub_folders.byte_level()
    made.add_special_tokens(["\n\n", " <end>"])
    hub = HubTokenizer(hub_folders.write(tmp_path, made))
    for text in ("storm\nof\n\nseas", "the <end> of<end>", "\n\n"):
        assert hub.encode_parts([text]) == [made.encode(text, add_special_tokens=False).ids]


def test_the_first_token_may_end_texts(tmp_path: pathlib.Path) -> None:
    folder = hub_folders.write(tmp_path, hub_folders.byte_level())
    (folder / "generation_config.json").write_text('{"eos_token_id": 0}')
    assert HubTokenizer(folder).stop_ids[1:] == (0,)


def test_saving_loading_and_preparing(tmp_path: pathlib.Path) -> None:
    folder = hub_folders.write(tmp_path / "hub", hub_folders.byte_level(), template="{{ 'hi' }}")
    hub = data.load_tokenizer(folder)
    (tmp_path / "saved").mkdir()
    hub.save(tmp_path / "saved")
    again = data.load_tokenizer(tmp_path / "saved")
    assert (again.kind, again.fingerprint) == ("hub", hub.fingerprint)
    assert again.chat_template == "{{ 'hi' }}"

    (tmp_path / "texts.txt").write_text("\n".join(f"the storm of {i} seas" for i in range(30)))
    source = data.Source("texts", str(tmp_path / "texts.txt"), split="line")
    settings = data.TokenizerConfig(kind="hub", path=str(folder))
    config = data.DataConfig((source,), settings, validation_share=0.3)
    manifest = data.prepare(config, tmp_path / "data")
    assert manifest.tokenizer["fingerprint"] == hub.fingerprint
    (tmp_path / "hub").rename(tmp_path / "moved")
    moved = data.TokenizerConfig(kind="hub", path=str(tmp_path / "moved"))
    config = data.DataConfig((source,), moved, validation_share=0.3)
    assert data.prepare(config, tmp_path / "data") == manifest
    hub_folders.write(tmp_path / "moved", hub_folders.byte_level(), template="{{ 'ho' }}")
    with pytest.raises(ValueError, match="prepared differently"):
        data.prepare(config, tmp_path / "data")


def test_errors_say_what_to_do(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json.*save_pretrained"):
        tokenizer.train(data.TokenizerConfig(kind="hub", path=str(tmp_path)), [])
    with pytest.raises(ValueError, match="kind 'hub' needs"):
        data.TokenizerConfig(kind="hub")
    with pytest.raises(ValueError, match="gets symbols"):
        data.TokenizerConfig(kind="hub", path="x", symbols=("A:",))
    made = hub_folders.byte_level()
    with pytest.raises(ValueError, match="neither an eos nor a sep"):
        HubTokenizer(hub_folders.write(tmp_path / "no_eos", made, eos_token=None))
    with pytest.raises(ValueError, match="at character 1"):
        HubTokenizer(hub_folders.write(tmp_path / "good", made)).encode("a\ud800")
    for broken in ("[]", "{}", "{", json.dumps({"model": {"type": "BPE", "vocab": {}}})):
        (tmp_path / "good" / "tokenizer.json").write_text(broken)
        with pytest.raises(ValueError, match=r"tokenizer\.json is not a valid tokenizer"):
            HubTokenizer(tmp_path / "good")


def test_the_package_is_asked_for(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub_folders.write(tmp_path, hub_folders.byte_level())
    find = importlib.import_module

    def missing(name: str, *rest: object) -> object:
        if name == "tokenizers":
            raise ModuleNotFoundError(name)
        return find(name)

    monkeypatch.setattr(hub_tokenizer.importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"llmjax\[hf\]"):
        HubTokenizer(folder)
