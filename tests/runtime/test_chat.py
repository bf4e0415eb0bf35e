"""Templates are rendered as transformers renders them, and answers are found in what they write."""

from __future__ import annotations

import warnings
from datetime import datetime
from typing import Any

import pytest
from bitfabric.runtime.chat import ChatError, ChatTemplate, check_messages
from bitfabric.runtime.tokenizer import Tokenizer, load_tokenizer

from .conftest import CHATML, SPECIAL, byte_level_tokenizer
from .toy import ToyBundle

LLAMA3 = """{{- bos_token }}
{%- for message in messages %}
    {%- if loop.index0 > 20 %}{% break %}{% endif %}
    {{- '<|im_start|>' + message['role'] + '\n\n' }}
    {%- if message.content is string %}
        {{- message['content'] | trim + '<|im_end|>' }}
    {%- else %}
        {{- message['content'] | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n\n' }}
{%- endif %}
"""
PLAIN = """{% for m in messages %}
{% if m.role == 'user' %}
Q: {{ m.content }}
{% elif m.role == 'assistant' %}
A: {{ m.content }}{{ eos_token }}
{% else %}
{{ raise_exception('Only questions and answers, not ' + m.role) }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
A:{% endif %}
"""
MARKED = CHATML.replace(
    "{{ message['content'] + '<|im_end|>' + '\\n' }}",
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endif %}",
)
DROPS_REASONING = """{% for m in messages %}
<{{ m.role }}>{{ m.content if loop.last else m.content.split('</think>')[-1] }}</{{ m.role }}>
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Is the answer <|im_end|> no?"},
    {"role": "assistant", "content": "no, assistant"},
    {"role": "user", "content": "the answer: 東京"},
    {"role": "assistant", "content": "yes, é"},
]
VARIABLES = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}


@pytest.mark.parametrize("source", [CHATML, LLAMA3, PLAIN, MARKED])
@pytest.mark.parametrize("answer_next", [False, True])
def test_a_template_is_rendered_as_transformers_does(source: str, answer_next: bool) -> None:
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    messages = TALK[:3] if answer_next else TALK
    expected, _ = utilities.render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=answer_next, **VARIABLES
    )
    rendered = ChatTemplate(source, VARIABLES).render(messages, answer_next=answer_next)
    assert rendered == expected[0]


def test_answers_are_found_where_transformers_finds_marked_ones(chat_bundle: ToyBundle) -> None:
    """Transformers needs {% generation %} in the template; we find the same without it."""
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = transformers.PreTrainedTokenizerFast(
            tokenizer_object=byte_level_tokenizer(), additional_special_tokens=SPECIAL
        )
        expected = reference.apply_chat_template(
            TALK, chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
        )
    tokenizer = load_tokenizer(chat_bundle)
    tokens, marks = tokenizer.encode_marked(tokenizer.chat.mark_answers(TALK))
    assert tokens == list(expected["input_ids"])
    assert [int(mark) for mark in marks] == list(expected["assistant_masks"])


@pytest.mark.parametrize("source", [CHATML, LLAMA3, MARKED])
def test_answers_are_what_the_assistant_wrote_and_what_ends_it(source: str) -> None:
    template = ChatTemplate(source, VARIABLES)
    pieces = template.mark_answers(TALK)
    assert "".join(text for text, _ in pieces) == template.render(TALK)
    answers = [text for text, marked in pieces if marked]
    assert [answer.split("<|im_end|>")[0] for answer in answers] == ["no, assistant", "yes, é"]
    assert all("<|im_end|>" in answer for answer in answers)


def test_a_template_without_tags_works_too() -> None:
    pieces = ChatTemplate(PLAIN, VARIABLES).mark_answers(TALK)
    assert [text for text, marked in pieces if marked] == [" no, assistant<|end|>\n",
                                                           " yes, é<|end|>\n"]  # fmt: skip


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    talk = [dict(message) for message in TALK]
    talk[1]["content"] = "hm</think>no"
    template = ChatTemplate(DROPS_REASONING)
    assert template.mark_answers(talk[:2])[-1] == ("hm</think>no</assistant>\n", True)
    with pytest.raises(ChatError, match=r"message 2.*its place cannot be found"):
        template.mark_answers(talk)


def test_a_refusal_of_the_template_is_told() -> None:
    template = ChatTemplate(PLAIN, VARIABLES)
    with pytest.raises(ChatError, match="Only questions and answers, not system"):
        template.render([{"role": "system", "content": "x"}])
    with pytest.raises(ChatError, match="not valid Jinja"):
        ChatTemplate("{% for %}").render(TALK)


def test_a_template_cannot_reach_outside_of_its_sandbox() -> None:
    hostile = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(ChatError, match="refuses"):
        ChatTemplate(hostile).render(TALK)
    with pytest.raises(ChatError, match="refuses"):
        ChatTemplate("{{ messages.append(1) }}").render(TALK)


def test_the_clock_can_be_stopped() -> None:
    template = ChatTemplate("{{ strftime_now('%d %B %Y') }}")
    assert template.at(datetime(2024, 2, 29)).render([]) == "29 February 2024"
    assert template.render([]) == datetime.now().strftime("%d %B %Y")


@pytest.mark.parametrize(
    "messages", [[], "hello", [1], [{"content": "x"}], [{"role": "user", "content": 5}], None]
)
def test_what_is_no_conversation_is_refused(messages: object) -> None:
    with pytest.raises(ChatError):
        check_messages(messages)


def test_the_text_after_an_answer_is_told_by_the_template() -> None:
    assert ChatTemplate(CHATML).after_answer() == "<|im_end|>\n"
    assert ChatTemplate("{{ raise_exception('no') }}").after_answer() == ""
    plain = Tokenizer(load_tokenizer(ToyBundle()).codec, end=(2,), chat=ChatTemplate(PLAIN))
    assert plain.end_of_turn() == (2,)
