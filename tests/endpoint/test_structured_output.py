"""JSON of a schema, from a model that knows nothing: what ends by itself always validates."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from queue import Queue
from typing import Literal

import openai
import pytest
import torch
from pydantic import BaseModel
from reciting_llama import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from tracetune.trainers.endpoint.grammars import Grammars
from tracetune.trainers.endpoint.rows import Piece, Row
from tracetune.types import Sampling

TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
)
ASK = [{"role": "user", "content": "Who?"}]


class Mood(StrEnum):
    """How somebody feels."""

    GLAD = "glad"
    SAD = "sad"


class Person(BaseModel):
    """Nested, with what schemas usually have."""

    name: Literal["Ann", "Bob"]
    age: int
    mood: Mood
    friends: list[Literal["Cy", "Di"]]
    is_here: bool | None


@pytest.fixture(scope="module")
def untrained():
    """A random Llama, two tokens wider than its byte-level tokenizer, that likes to end."""
    tokenizer = byte_tokenizer(TEMPLATE)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 2,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


@pytest.fixture
def client(serve, connect, untrained):
    """A client of it."""
    model, tokenizer = untrained
    return connect(serve(model=model, tokenizer=tokenizer))


def test_what_ends_by_itself_validates(client, journal):
    """`parse` gives an object of the class from every choice whose reason is stop, at any temperature."""
    reasons = []
    for seed, temperature in enumerate((0.3, 1.0, 2.0)):
        # parse() itself raises where a choice was cut at its limit, so the limit is above what any has.
        response = client.chat.completions.parse(
            model="policy", messages=ASK, response_format=Person, n=6, seed=10 * seed, temperature=temperature,
            max_tokens=400,
        )  # fmt: skip
        for choice in response.choices:
            assert choice.message.parsed == Person.model_validate_json(choice.message.content)
            reasons.append(choice.finish_reason)
    assert reasons == ["stop"] * 18
    assert {record.sampling.constrained for record in journal.completions} == {True}
    assert not any(record.sampling.on_policy for record in journal.completions)


def test_free_rows_of_the_same_batch_are_not_constrained(client, journal, untrained):
    """Rows with and without a schema are decoded together, and each has the text that it has alone."""
    formats = [None, {"type": "json_object"}, {"type": "text"}, None]

    def ask(index):
        options = {} if formats[index] is None else {"response_format": formats[index]}
        return client.chat.completions.create(
            model="policy", messages=ASK, seed=index, max_tokens=40, **options
        ).choices[0].message.content  # fmt: skip

    alone = [ask(index) for index in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == alone
    assert [record.sampling.constrained for record in journal.completions[:4]] == [False, True, False, False]
    assert alone[1].startswith("{")


def test_recorded_logprobs_are_those_of_what_was_allowed(client, journal, untrained):
    """They are renormalised over the allowed tokens, temperature applied: a forced token has 0."""
    model, tokenizer = untrained
    schema = {"type": "object", "properties": {"a": {"enum": [0, 1]}}, "required": ["a"], "additionalProperties": False}
    client.chat.completions.create(
        model="policy",
        messages=ASK,
        temperature=0.7,
        response_format={"type": "json_schema", "json_schema": {"name": "one", "schema": schema, "strict": True}},
    )
    (record,) = journal.completions
    assert record.text in ('{"a": 0}', '{"a": 1}')
    choice = len('{"a": ')
    ids = torch.tensor([[*record.prompt_token_ids, *record.completion_token_ids]])
    with torch.no_grad():
        logits_V = model(ids).logits[0, len(record.prompt_token_ids) + choice - 1] / 0.7
    both = logits_V[tokenizer.convert_tokens_to_ids(["0", "1"])].log_softmax(0)
    expected = [0.0] * len(record.completion_token_ids)
    expected[choice] = float(both[int(record.text[choice])])
    assert record.completion_token_ids[-1] == tokenizer.eos_token_id
    torch.testing.assert_close(torch.tensor(record.completion_logprobs), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_a_stream_of_json_is_the_whole_of_it(client):
    """Pieces of a stream put together are the object."""
    person = {"type": "json_schema", "json_schema": {"name": "p", "schema": Person.model_json_schema()}}
    chunks = client.chat.completions.create(
        model="policy", messages=ASK, response_format=person, seed=3, max_tokens=400, stream=True
    )
    whole = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert isinstance(Person.model_validate_json(whole), Person)


def test_a_paused_row_goes_on_within_its_grammar(serve, connect, untrained):
    """Rows that had to make room for others still end in what their schema describes."""
    model, tokenizer = untrained
    response = connect(serve(model=model, tokenizer=tokenizer, cache_tokens=200)).chat.completions.parse(
        model="policy", messages=ASK, response_format=Person, n=5, seed=1, max_tokens=400
    )
    assert all(isinstance(choice.message.parsed, Person) for choice in response.choices)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"type": "json_schema"}, "json_schema"),
        ({"type": "xml"}, "xml"),
        ({"type": "json_object", "json_schema": {"name": "a", "schema": {}}}, "json_schema stands beside"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "wizard"}}}, "can't be ensured"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#/nowhere"}}}, "can't be ensured"),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {"type": "null"}}}},
            "can't be ensured",
        ),
    ],
)
def test_a_schema_that_cannot_be_ensured_is_refused(client, wanted, words):
    """Nothing is decoded under half a schema: the client hears what is wrong with it."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="policy", messages=ASK, response_format=wanted)
    assert caught.value.param == "response_format"
    assert words in caught.value.message


def test_tools_and_a_schema_exclude_each_other(client):
    """A call is no JSON of the schema, so asking for both is refused; with tool_choice none it is not."""
    tool = {"type": "function", "function": {"name": "search"}}
    options = {"model": "policy", "messages": ASK, "tools": [tool], "response_format": {"type": "json_object"}}
    with pytest.raises(openai.BadRequestError, match="no room for tool calls"):
        client.chat.completions.create(**options)
    text = client.chat.completions.create(**options, tool_choice="none", max_tokens=3).choices[0].message.content
    assert text.startswith("{")


def test_a_tokenizer_that_cannot_be_constrained_says_so(serve, connect, untrained, monkeypatch):
    """Without an end token nothing could end, and the request is refused."""
    model, tokenizer = untrained[0], byte_tokenizer(TEMPLATE)
    tokenizer.eos_token = None
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    with pytest.raises(openai.BadRequestError, match="can't be constrained"):
        connect(serve(model=model, tokenizer=tokenizer)).chat.completions.create(
            model="policy", messages=ASK, response_format={"type": "json_object"}
        )


def test_alternatives_are_those_that_were_allowed(client):
    """A token that the grammar forces has no alternatives: what was ruled out is not listed."""
    schema = {"const": "yes"}
    response = client.chat.completions.create(
        model="policy",
        messages=ASK,
        response_format={"type": "json_schema", "json_schema": {"name": "one", "schema": schema}},
        logprobs=True,
        top_logprobs=5,
    )
    content = response.choices[0].logprobs.content
    assert [[(each.token, each.logprob) for each in entry.top_logprobs] for entry in content] == [
        [(letter, 0.0)] for letter in '"yes"'
    ]


def test_a_grammar_that_breaks_ends_its_own_row_alone(serve, connect, untrained):
    """The row's client hears of it, and rows beside it go on."""
    model, tokenizer = untrained
    endpoint = serve(model=model, tokenizer=tokenizer)
    grammars = Grammars(tokenizer, [tokenizer.eos_token_id])
    broken = grammars.constraint(grammars.of_schema({"type": "object"}))
    broken.accept(tokenizer.convert_tokens_to_ids("x"))
    pieces: Queue[Piece] = Queue()
    rows = [
        Row("r", choice, "policy", (7, 8), Sampling(temperature=0.0, max_tokens=4), pieces.put, constraint=constraint)
        for choice, constraint in enumerate([broken, None])
    ]
    endpoint._engine.submit(rows)
    ended = {piece.row.choice: piece for piece in (pieces.get(timeout=30), pieces.get(timeout=30))}
    assert ended[0].problem is not None
    assert "grammar of 'response_format' failed" in ended[0].problem.message
    assert (ended[1].problem, ended[1].tokens) == (None, len(rows[1].completion_ids))


def test_json_objects_of_any_kind_are_json(client):
    """`json_object` gives an object, cut only by the limit of tokens."""
    choice = client.chat.completions.create(
        model="policy", messages=ASK, response_format={"type": "json_object"}, temperature=0.2, max_tokens=100
    ).choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    else:
        assert choice.message.content.startswith("{")
