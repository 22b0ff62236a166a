"""Requests that are huge, deep or odd are refused in OpenAI's words, and hold nobody else up."""

from __future__ import annotations

import copy
import json
import random
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reciting_llama import byte_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tracetune.trainers.endpoint.lengths import length_bound
from tracetune.trainers.endpoint.problems import Problem
from tracetune.trainers.endpoint.prompts import Prompts

CHAT: dict[str, Any] = {"model": "policy", "messages": [{"role": "user", "content": "w1"}], "max_tokens": 2}
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def wrapped(inner: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer as transformers has it."""
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def bytes_with_merges() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2's children have it: composed characters, long tokens, special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "a"), ("aa", "aa"), ("aaaa", "aaaa"), ("Ã", "©")]
    tokens = [*alphabet, *("".join(merge) for merge in merges)]
    inner = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    tokenizer = wrapped(inner)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    return tokenizer


def characters_with_bytes() -> PreTrainedTokenizerFast:
    """BPE of characters that falls back to bytes, as SentencePiece's models are converted."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "é", "▁a", "aa", "▁aa"]
    merges = [("▁", "a"), ("a", "a"), ("▁", "aa")]
    model = models.BPE(
        {token: index for index, token in enumerate(tokens)},
        merges,
        byte_fallback=True,
        unk_token="<unk>",
        fuse_unk=True,
    )
    inner = Tokenizer(model)
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return wrapped(inner)


BOUNDED = {"bytes": byte_tokenizer(TEMPLATE), "merges": bytes_with_merges(), "characters": characters_with_bytes()}


@pytest.mark.parametrize("kind", BOUNDED)
@given(text=st.text(st.sampled_from("aé e\u0301\u0327日\U0001f600 \n0<|im_start|>\u1100\u1161\u11a8"), max_size=60))
def test_no_text_has_fewer_tokens_than_its_length_says(kind, text):
    """Whatever is composed, merged, special or fallen back from."""
    bound = length_bound(BOUNDED[kind])
    assert bound is not None
    for form in ("NFC", "NFD"):
        changed = unicodedata.normalize(form, text)
        assert bound.fewest_tokens(changed) <= len(BOUNDED[kind](changed, add_special_tokens=False)["input_ids"])


def unbounded() -> dict[str, PreTrainedTokenizerFast]:
    """Tokenizers with one token for texts of any length."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    dropping = bytes_with_merges()
    dropping.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    stripping = bytes_with_merges()
    stripping.add_tokens([AddedToken("<mask>", lstrip=True)])
    shortening = bytes_with_merges()
    shortening.backend_tokenizer.normalizer = normalizers.Strip()
    return {"words": wrapped(words), "dropping": dropping, "stripping": stripping, "shortening": shortening}


@pytest.mark.parametrize("kind", sorted(unbounded()))
def test_where_a_token_may_be_any_length_nothing_is_refused_for_its_length(kind):
    """No bound is better than a wrong one: such texts are tokenised."""
    assert length_bound(unbounded()[kind]) is None


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenised(monkeypatch):
    """The longest that fits is taken, one token more is refused, and of megabytes no token is made."""
    tokenizer = bytes_with_merges()
    tokenizer.chat_template = TEMPLATE
    prompts = Prompts(tokenizer, context=100, vocabulary=len(tokenizer))
    longest = "<|im_start|>" * 99
    assert len(prompts.of_text(longest)) == 99
    monkeypatch.setattr(type(tokenizer), "__call__", None)
    monkeypatch.setattr(type(tokenizer), "encode", None)
    message = r"maximum context length is 100 tokens, and 7000000 characters are at least 583334; shorten the prompt to"
    with pytest.raises(Problem, match=message):
        prompts.of_text("x" * 7_000_000)
    with pytest.raises(Problem, match="maximum context length is 100 tokens"):
        prompts.check_size({"prompt": [[5], [5] * 100]})
    assert prompts.check_size({"prompt": [5] * 99}) is None


def test_a_chat_has_the_tokens_that_its_template_gives(model, tokenizer):
    """Rendered and tokenised in two steps, it is what transformers makes in one."""
    from tracetune.trainers.endpoint.messages import Message

    for made in (tokenizer, byte_tokenizer(TEMPLATE)):
        messages = [Message(role="system", content="w1  w2"), Message(role="user", content=" <user> \n w3")]
        plain = [{"role": message.role, "content": message.content} for message in messages]
        expected = made.apply_chat_template(plain, add_generation_prompt=True, return_dict=False)
        assert list(Prompts(made, context=500, vocabulary=len(made)).of_chat(messages)) == expected


def test_a_large_prompt_holds_nobody_up(serve, connect, monkeypatch):
    """While one prompt is tokenised, as long as that may take, the others are answered."""
    client = connect(serve())
    begun, go_on = threading.Event(), threading.Event()
    of_chat = Prompts.of_chat

    def slow(self, messages, tools=()):
        if len(messages) > 2_000:
            begun.set()
            assert go_on.wait(120)
        return of_chat(self, messages, tools)

    monkeypatch.setattr(Prompts, "of_chat", slow)
    large = {**CHAT, "messages": [{"role": "user", "content": "w1 " * 40}] * 3_000}
    with ThreadPoolExecutor(16) as pool:
        waiting = [pool.submit(client.chat.completions.create, **large) for _ in range(8)]
        assert begun.wait(60)
        for _ in range(3):
            assert client.chat.completions.create(**CHAT).choices
        assert not any(each.done() for each in waiting)
        go_on.set()
        for each in waiting:
            with pytest.raises(openai.BadRequestError, match="maximum context length"):
                each.result(120)


def test_a_tokenizer_that_llguidance_cannot_read_is_said(serve, connect):
    """Its words are no bytes that JSON could be spelled with: 400, with what to do, as often as it is asked."""
    client = connect(serve())
    for _ in range(2):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**CHAT, response_format={"type": "json_object"})
        assert (caught.value.param, caught.value.code) == ("response_format", "unsupported_response_format")
        assert "llguidance can't read the policy's tokenizer" in caught.value.message
        assert "leave out 'response_format' and ask for JSON in the prompt" in caught.value.message


@pytest.mark.parametrize(
    "template", ["{{ messages[0].content + 1 }}", "{{ messages[0].missing.more }}", "{{ 1 // 0 }}", "{{ [].x() }}"]
)
def test_a_template_that_fails_on_the_messages_is_the_requests_mistake(
    serve, connect, tokenizer, monkeypatch, template
):
    """Whatever the template's code raises is a 400 that says what it was."""
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(openai.BadRequestError, match="the model's chat template"):
        connect(serve()).chat.completions.create(**CHAT)


def test_stop_strings_are_short(serve, connect):
    """One of a megabyte would be compared with the text at each token."""
    client = connect(serve())
    with pytest.raises(openai.BadRequestError, match="a 'stop' string has at most 1000 characters; shorten it"):
        client.chat.completions.create(**CHAT, stop="x" * 1001)
    assert client.chat.completions.create(**CHAT, stop="x" * 1000).choices


def deep(depth: int, opening: str = '{"a":', closing: str = "}") -> Any:
    """JSON in JSON in JSON."""
    return orjson.loads(opening * depth + "1" + closing * depth)


ODD: list[Any] = [
    None, True, False, 0, -1, 1.5, 10**9, 2**63, 2**64, -(2**63), 1e308, "", "x", "\x00", "\ud7ff", "\U0010ffff" * 50,
    "x" * 100_000, [], {}, [[]], [None], [{}], {"": {}}, [1] * 1000, ["x"] * 1000, [[5]] * 200, [-1], [2**40],
    deep(300), deep(900, "[", "]"), {"type": "json_object"}, {"type": "json_schema"},
]  # fmt: skip
SCHEMAS: list[Any] = [
    {}, {"type": "nothing"}, {"$ref": "#"}, {"$ref": "#/nowhere"}, {"$ref": "http://127.0.0.1:1/x"},
    {"allOf": [{}] * 500},
    {"type": "string", "pattern": "(((((a{1,999}){1,999}){1,999}){1,999}){1,999})"},
    {"type": "string", "pattern": "(?<=x)("}, {"type": "string", "minLength": 10**9}, {"enum": []},
    {"type": "array", "minItems": 10**6, "items": {"type": "integer"}}, {"anyOf": [{"const": i} for i in range(5000)]},
    {"type": "object", "properties": {f"p{i}": {} for i in range(3000)}, "required": [f"p{i}" for i in range(3000)]},
    deep(300, '{"items":', "}"), deep(900, '{"items":', "}"), {"type": "integer", "minimum": 1e308, "maximum": -1e308},
]  # fmt: skip


def bodies() -> list[tuple[str, dict[str, Any]]]:
    """Requests of which one value is odd, at any place."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    chat = {
        **CHAT,
        "n": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 5, "seed": 1, "stop": ["x"], "stream": False,
        "tools": [tool],
        "stream_options": {"include_usage": True}, "tool_choice": "auto", "response_format": {"type": "text"},
        "max_completion_tokens": 2, "logprobs": True, "top_logprobs": 2, "logit_bias": {}, "user": "u", "best_of": 1,
    }  # fmt: skip
    plain = {"model": "policy", "prompt": ["w1", "w2"], "max_tokens": 2, "logprobs": 1, "echo": False, "n": 2}
    made = []
    for path, whole in (("/chat/completions", chat), ("/completions", plain)):
        for place in places(whole):
            for odd in ODD:
                changed = copy.deepcopy(whole)
                target = changed
                for step in place[:-1]:
                    target = target[step]
                target[place[-1]] = odd
                made.append((path, changed))
    made += [
        (
            "/chat/completions",
            {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        )
        for schema in SCHEMAS
    ]
    return made


def places(value: Any) -> list[tuple[Any, ...]]:
    """The way to each value inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way for key, inner in items for way in [(key,), *((key, *rest) for rest in places(inner))]]


@pytest.fixture
def byte_endpoint(serve):
    """An endpoint whose tokenizer llguidance can read."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer(
        "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}"
        "{% endfor %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return serve(model=LlamaForCausalLM(config).eval(), tokenizer=tokenizer)


def test_an_odd_value_anywhere_is_answered_or_refused_by_name(byte_endpoint, caplog):
    """No request is a 5xx, each refusal is OpenAI's, nothing is logged, and the endpoint goes on."""
    wanted = bodies()
    random.Random(0).shuffle(wanted)
    headers = {"authorization": f"Bearer {byte_endpoint.policy.api_key}"}
    with httpx.Client(base_url=byte_endpoint.policy.base_url, headers=headers, timeout=120) as client:
        statuses = set()
        for path, body in wanted:
            content = json.dumps(body).encode()
            answer = client.post(path, content=content)
            statuses.add(answer.status_code)
            assert answer.status_code in (200, 400, 404), (answer.text[:300], content[:300])
            if answer.status_code != 200:
                assert answer.json()["error"]["message"]
        assert statuses == {200, 400, 404}
        assert client.post("/chat/completions", json=CHAT).status_code == 200
    assert [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nul",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model":"policy","messages":' + b"[" * 2000,
        b"{}" * 9,
    ],
)
def test_what_is_no_json_is_refused(byte_endpoint, content):
    """Cut, nested without end, in no encoding: 400."""
    headers = {"authorization": f"Bearer {byte_endpoint.policy.api_key}"}
    answer = httpx.post(f"{byte_endpoint.policy.base_url}/chat/completions", content=content, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
