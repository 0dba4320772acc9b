"""Chat templates: what is trained is what the assistant wrote, and nothing else ever is."""

import functools
import logging
import pathlib
from collections.abc import Callable

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from llmjax import data
from llmjax.data import chat, tokenizer
from llmjax.data.hub_tokenizer import HubTokenizer
from tests.data import hub_folders

TEXTS = [f"A: the storm\nB: of {i} seas, la tempête\tnaît" for i in range(50)]
SYMBOLS = ("A:", "B:", "<|im_start|>", "<|im_end|>")
TRAINED = tokenizer.train(data.TokenizerConfig(vocab_size=320, symbols=SYMBOLS), TEXTS)
BYTES = tokenizer.ByteTokenizer()

# Templates in the manner of well-known models, which mark nothing.
LLAMA = """{{- '<|begin|>' }}
{%- for message in messages %}
{{- '<|header|>' + message.role + '<|/header|>\n\n' + message.content | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|header|>assistant<|/header|>\n\n' }}{% endif %}"""
QWEN = """{%- if messages[0].role != 'system' %}
{{- '<|im_start|>system\nHelp.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""
GEMMA = """{{- bos_token }}
{%- for message in messages %}
{%- set role = 'model' if message.role == 'assistant' else message.role %}
{{- '<turn>' + role + '\n' + message.content | trim + '</turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<turn>model\n' }}{% endif %}"""
MISTRAL = """{{- bos_token }}
{%- set said = messages %}
{%- if messages[0].role == 'system' %}{% set said = messages[1:] %}{% endif %}
{%- for message in said %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}
{%- endif %}
{%- if message.role == 'user' %}
{%- set first = messages[0].content + '\n\n' if loop.last and said is not sameas messages else '' %}
{{- '[INST] ' + first + message.content + ' [/INST]' }}
{%- else %}
{{- ' ' + message.content + eos_token }}
{%- endif %}
{%- endfor %}"""
# What was thought is left out of all turns but the last.
THINKING = """{%- for message in messages %}
{%- set content = message.content if loop.last else message.content.split('</think>')[-1] %}
{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""

TALK = [
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "I am fine. "},
    {"role": "user", "content": "storm?"},
    {"role": "assistant", "content": "42 seas"},
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> HubTokenizer:
    return HubTokenizer(
        hub_folders.write(tmp_path_factory.mktemp("chat"), hub_folders.byte_level())
    )


def runs(encoder: tokenizer.Tokenizer, tokens: np.ndarray, trained: np.ndarray) -> list[str]:
    """The text of each run of trained tokens, special tokens written out."""
    written = {i: name.encode() for name, i in encoder.special_tokens.items()}
    texts, before = [], False
    for token, own in zip(tokens.tolist(), trained.tolist(), strict=True):
        if own:
            texts += [] if before else [b""]
            texts[-1] += written.get(token) or encoder.piece(token)
        before = own
    return [text.decode() for text in texts]


@pytest.mark.parametrize(
    ("source", "expected", "end"),
    [
        (LLAMA, ["I am fine.<|eot|>", "42 seas<|eot|>"], "<|eot|>"),
        (QWEN, ["I am fine. <|im_end|>", "42 seas<|im_end|>"], "<|im_end|>"),
        (GEMMA, ["I am fine.</turn>", "42 seas</turn>"], "</turn>"),
        (MISTRAL, [" I am fine. </s>", " 42 seas</s>"], "</s>"),
    ],
    ids=["llama", "qwen", "gemma", "mistral"],
)
def test_marks_of_templates_that_have_none(
    hub: HubTokenizer, source: str, expected: list[str], end: str
) -> None:
    template = chat.ChatTemplate(source, hub)
    tokens, trained = template.encode(TALK)
    assert (tokens.dtype, trained.dtype) == (np.int32, np.bool_)
    assert runs(hub, tokens, trained) == expected
    assert runs(hub, *template.encode(TALK, turns="last")) == expected[1:]
    assert runs(hub, tokens, tokens >= 0) == [template.render(TALK)]
    assert set(template.stop_ids) == {hub.special_tokens[end], hub.eos_id}


def test_the_text_of_a_template_written_out(hub: HubTokenizer) -> None:
    assert chat.ChatTemplate(GEMMA, hub).render(TALK[:2], add_generation_prompt=True) == (
        "<s><turn>user\nHow are you?</turn>\n<turn>model\nI am fine.</turn>\n<turn>model\n"
    )
    tokens, _ = chat.ChatTemplate(GEMMA, hub).encode(TALK)
    assert tokens.tolist().count(hub.special_tokens["<s>"]) == 1


def test_a_turn_that_later_ones_rewrite_is_not_guessed_at(hub: HubTokenizer) -> None:
    template = chat.ChatTemplate(THINKING, hub)
    thought = [TALK[0], {"role": "assistant", "content": "<think>h</think>I am fine. "}, *TALK[2:]]
    with pytest.raises(ValueError, match=r"cannot be located.*turns='last'.*How are you"):
        template.encode(thought)
    assert runs(hub, *template.encode(thought, turns="last")) == ["42 seas<|im_end|>"]
    assert runs(hub, *template.encode(thought[:2])) == ["<think>h</think>I am fine. <|im_end|>"]
    # The answer stands behind another prompt than the one that it will be asked for with.
    system = [{"role": "system", "content": "Be kind."}, *TALK]
    with pytest.raises(ValueError, match="cannot be located"):
        chat.ChatTemplate(MISTRAL, hub).encode(system, turns="last")
    # Something else than the assistant's turn stands at the end.
    header = LLAMA.replace("{%- if add_generation_prompt %}", "{%- if true %}")
    with pytest.raises(ValueError, match="cannot be located"):
        chat.ChatTemplate(header, hub).encode(TALK, turns="last")


ENDS: dict[str, Callable[[str], str]] = {
    "chatml": lambda text: text + "<|im_end|>",
    "plain": lambda text: text + "</s>",
    "joined": lambda text: text + "</s>",
    "speakers": lambda text: " " + " ".join(text.split()) + "\n",
}
CONTENT = strategies.lists(
    strategies.sampled_from(
        ["the storm", " ", "\n", "\n\n", "é", "😀", *SYMBOLS, "<s>", "</s>", "<unk>", "<", "s>",
         "### User\n", "<|", "im_end|>", "{{ 1 }}", "{% generation %}"]
    )
    | strategies.text(max_size=4),
    max_size=6,
).map("".join)  # fmt: skip
TURNS = strategies.lists(
    strategies.tuples(strategies.sampled_from(["user", "assistant"]), CONTENT), max_size=5
)


load_template = functools.cache(chat.load_template)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in chat.TEMPLATES
        for kind in ("sentencepiece", "bytes", "hub")
        if (name, kind) != ("chatml", "bytes")  # which has no such tokens
    ],
)
@hypothesis.given(turns=TURNS, last=CONTENT)
@hypothesis.settings(max_examples=60, deadline=None)
def test_the_trained_tokens_are_the_assistants_words(
    hub: HubTokenizer, name: str, kind: str, turns: list[tuple[str, str]], last: str
) -> None:
    encoder = {"sentencepiece": TRAINED, "bytes": BYTES, "hub": hub}[kind]
    template = load_template(name, encoder)
    talk = [{"role": role, "content": content} for role, content in turns]
    prompt, none = template.encode(talk, add_generation_prompt=True)
    talk.append({"role": "assistant", "content": last})
    tokens, trained = template.encode(talk)
    said = [ENDS[name](m["content"]) for m in talk if m["role"] == "assistant"]
    assert "".join(runs(encoder, tokens, trained)) == "".join(said)
    assert runs(encoder, tokens, tokens >= 0) == [template.render(talk)]
    # A prompt is what training has in front of the answer, which ends in a token that stops.
    assert not none.any()
    np.testing.assert_array_equal(prompt, tokens[: len(prompt)])
    alone = template.encode(talk, turns="last")
    np.testing.assert_array_equal(alone[0], tokens)
    assert alone[1].nonzero()[0].tolist() == list(range(len(prompt), len(prompt) + alone[1].sum()))
    assert tokens[trained][-1] == template.stop_ids[0]
    assert template.stop_strings == ()
    if kind != "bytes":
        special = [encoder.special_tokens.get(s) for s in encoder.special_tokens if s != "</s>"]
        assert set(tokens[trained]) & set(special) <= {template.stop_ids[0]}


def test_speakers_write_as_the_corpus_does() -> None:
    template = chat.load_template("speakers", TRAINED)
    texts = ["How  are you?", "Fine\n you?", "Good"]
    talk = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]
    rendered = template.render(talk, add_generation_prompt=True)
    assert rendered == "<s>" + data.chat_prompt(texts)
    with pytest.raises(ValueError, match=r"not system.*Be kind"):
        template.encode([{"role": "system", "content": "Be kind"}, *talk])


def test_a_template_sees_what_transformers_shows_it(hub: HubTokenizer) -> None:
    source = """
    {%- for message in messages %}
        {%- if loop.index > 3 %}{% break %}{% endif %}
        {%- generation %}{{ message | tojson }}{% endgeneration %}
    {%- endfor %}
    {{- tools[0] | tojson(indent=1) }}{{ strftime_now('%Y') | length }}{{ name }}{{ unk_token }}"""
    template = chat.ChatTemplate(source, hub, tools=[{"f": "é<b>"}], name="<|eot|>")
    call = {"role": "assistant", "content": None, "tool_calls": [{"arguments": {"x": 1.5}}]}
    assert template.render([call]) == (
        '{"role": "assistant", "tool_calls": [{"arguments": {"x": 1.5}}]}'
        '{\n "f": "é<b>"\n}4<|eot|><unk>'
    )
    tokens, trained = template.encode([call])
    assert hub.special_tokens["<|eot|>"] not in tokens
    assert runs(hub, tokens, trained) == [template.render([call]).partition("{\n")[0]]


def test_marks_hold_within_macros(hub: HubTokenizer) -> None:
    source = """{%- macro turn(m) %}
    {{- m.role }}: {% generation %}{{ m.content }}|{% endgeneration %}
    {%- endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}"""
    talk = [TALK[1], TALK[3]]
    template = chat.ChatTemplate(source, hub)
    assert runs(hub, *template.encode(talk)) == ["I am fine. |", "42 seas|"]
    outside = """{% for m in messages %}{% filter trim %}
    {%- generation %} {{ m.content }} {% endgeneration %}{% endfilter %}{% endfor %}"""
    with pytest.raises(ValueError, match="inside the marks"):
        chat.ChatTemplate(outside, hub).encode(talk)


def test_marks_without_the_end_of_a_turn_are_told(
    hub: HubTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    source = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}</s>{% endfor %}"
    )
    with caplog.at_level(logging.WARNING):
        assert runs(hub, *chat.ChatTemplate(source, hub).encode(TALK[1:2])) == ["I am fine. "]
    assert "never learns to end" in caplog.text


def test_an_end_of_several_tokens_is_a_string(hub: HubTokenizer) -> None:
    source = """{% for m in messages %}{{ m.role + ': ' }}{% generation %}{{ m.content + ' (end)' }}
    {%- endgeneration %}{% endfor %}"""
    template = chat.ChatTemplate(source, hub)
    assert (template.stop_strings, template.stop_ids) == ((" (end)",), (hub.eos_id,))


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.__mro__[1].__subclasses__()",
        "messages.append(1)",
        "messages[0].update({'role': 'x'})",
        "cycler.__init__.__globals__.os.system('true')",
        "raise_exception.__globals__['json']",
        "namespace(__class__=1)",
        "'{0.__class__.__mro__}'.format(1)",
        "('%s' % strftime_now).__class__.__name__",
        "strftime_now.__self__.year",
        "range(10000000) | list",
    ],
)
def test_the_sandbox_holds(hub: HubTokenizer, expression: str) -> None:
    talk = [{"role": "user", "content": "Hi"}]
    with pytest.raises(ValueError, match="sandbox forbids|refuses the conversation"):
        chat.ChatTemplate(f"{{{{ {expression} }}}}", hub).render(talk)
    assert talk == [{"role": "user", "content": "Hi"}]


def test_the_tokenizers_own_template_and_a_file(tmp_path: pathlib.Path) -> None:
    made = hub_folders.byte_level()
    own = HubTokenizer(hub_folders.write(tmp_path / "a", made, template=QWEN))
    assert chat.load_template("", own).source == QWEN
    listed = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": GEMMA}]
    settings = HubTokenizer(hub_folders.write(tmp_path / "b", made, chat_template=listed))
    assert chat.load_template("", settings).source == GEMMA
    (tmp_path / "mine.jinja").write_text(LLAMA)
    assert chat.load_template(tmp_path / "mine.jinja", BYTES).source == LLAMA


def test_errors_show_the_example(hub: HubTokenizer) -> None:
    template = chat.load_template("plain", BYTES)
    with pytest.raises(ValueError, match=r"no assistant turn.*How are you"):
        template.encode(TALK[:1])
    nothing = chat.ChatTemplate("{% generation %}{% endgeneration %}x", hub)
    with pytest.raises(ValueError, match=r"marks contain nothing.*How are you"):
        nothing.encode(TALK)
    with pytest.raises(ValueError, match=r"message 1 has no role.*How are you"):
        template.encode([TALK[0], "Fine"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="at character 1"):
        template.encode([{"role": "user", "content": "a\udc00"}])
    with pytest.raises(ValueError, match="has a bytes"):
        template.encode([{"role": "assistant", "content": b"a"}])
    with pytest.raises(ValueError, match="line 1"):
        chat.ChatTemplate("{% if %}", hub)
    with pytest.raises(
        ValueError, match=r"no chat template: choose chatml, joined, plain, speakers"
    ):
        chat.load_template("", BYTES)
    with pytest.raises(ValueError, match="neither a file nor one of"):
        chat.load_template("alpaca", BYTES)
    with pytest.raises(ValueError, match=r"TokenizerConfig\.symbols"):
        chat.load_template("chatml", BYTES)
    long = [{"role": "user", "content": "x" * 5000}]
    with pytest.raises(ValueError) as error:
        template.encode(long)
    assert len(str(error.value)) < 500
