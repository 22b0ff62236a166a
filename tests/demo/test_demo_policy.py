"""The bundled policy: what is in the folder, that it knows its form, and that it is honestly weak."""

from __future__ import annotations

import json
import re

import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402 - after torch is known to be there
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from tracetune.demo import POLICY_FOLDER  # noqa: E402
from tracetune.demo.program import MAX_HOPS, answer_prompt, hop_prompt  # noqa: E402
from tracetune.demo.small_llama import build_tokenizer  # noqa: E402
from tracetune.demo.task import NAMES, RELATIONS, examples, reward  # noqa: E402
from tracetune.types import Call, Rollout  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer():
    """The bundled tokenizer."""
    return AutoTokenizer.from_pretrained(POLICY_FOLDER)


@pytest.fixture(scope="module")
def model():
    """The bundled policy, in float32."""
    return AutoModelForCausalLM.from_pretrained(POLICY_FOLDER, dtype=torch.float32).eval()


def completions(model, tokenizer, prompts: list[str]) -> list[str]:
    """Greedy completions of prompts, by transformers' own generate."""
    chats = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        for prompt in prompts
    ]
    batch = tokenizer(chats, return_tensors="pt", padding=True, return_token_type_ids=False)
    tokens_BT = model.generate(**batch, max_new_tokens=8, do_sample=False)
    return tokenizer.batch_decode(tokens_BT[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def test_the_files_are_small_and_bfloat16(model):
    """One safetensors file of at most 4 MB, all bfloat16, 1 to 1.9 million parameters."""
    weights = POLICY_FOLDER / "model.safetensors"
    with safe_open(weights, "pt") as file:
        dtypes = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - not a mapping
    assert dtypes == {"BF16"}
    assert weights.stat().st_size <= 4_000_000
    assert 1_000_000 <= model.num_parameters() <= 1_900_000
    assert json.loads((POLICY_FOLDER / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_every_word_of_the_task_is_one_known_token(tokenizer):
    """No prompt of the program and no completion in form contains an unknown word."""
    example = examples("val", 1)[0]
    texts = [
        hop_prompt(**example.inputs, trail=["ann"]),
        answer_prompt(example.inputs["question"], ["ann", "bob"]),
        "ann more",
        "bob done",
        "the answer is cara",
        " ".join([*NAMES, *RELATIONS]),
    ]
    for text in texts:
        tokens = tokenizer.encode(text)
        assert tokenizer.unk_token_id not in tokens
        assert len(tokens) == len(re.findall(r"\n|\S+", text))


def test_the_bundled_tokenizer_is_the_one_that_the_script_makes(tokenizer):
    """Whoever changes the program's words or the chat template must make the policy again."""
    made = build_tokenizer()
    assert (tokenizer.get_vocab(), tokenizer.chat_template) == (made.get_vocab(), made.chat_template)


def test_a_completion_in_form_comes_back_as_it_was(tokenizer):
    """Decoding the tokens of a completion gives the very text, so that the program's patterns fit."""
    assert [tokenizer.decode(tokenizer.encode(text)) for text in ("ann more", "the answer is bob")] == [
        "ann more",
        "the answer is bob",
    ]


def test_the_chat_template_knows_all_roles(tokenizer):
    """System, user and assistant turns each have their mark, and an assistant's turn its end."""
    chat = [
        {"role": "system", "content": "say the answer"},
        {"role": "user", "content": "next"},
        {"role": "assistant", "content": "ann done"},
        {"role": "user", "content": "next"},
    ]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    marks = "<system> say the answer <user> next <assistant> ann done </s> <user> next <assistant>"
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(rendered)) == marks.split()


def test_it_is_weak_and_nearly_always_in_form(model, tokenizer):
    """Played greedily on 40 held-out questions it earns between 0.1 and 0.45, because it stops too early."""
    questions = examples("val", 40)
    trails = [[example.inputs["question"].split()[0]] for example in questions]
    going = list(range(len(questions)))
    for _ in range(MAX_HOPS):
        prompts = [hop_prompt(**questions[i].inputs, trail=trails[i]) for i in going]
        texts = dict(zip(going, completions(model, tokenizer, prompts), strict=True))
        parsed = {i: match for i, text in texts.items() if (match := re.fullmatch(r"(\w+) (more|done)", text))}
        for i, match in parsed.items():
            trails[i].append(match[1])
        going = [i for i, match in parsed.items() if match[2] == "more"]
        if not going:
            break
    answers = completions(
        model,
        tokenizer,
        [answer_prompt(example.inputs["question"], trail) for example, trail in zip(questions, trails, strict=True)],
    )
    rewards = []
    for example, trail, text in zip(questions, trails, answers, strict=True):
        calls = [Call(f"c{i}", "r", "hop") for i in range(len(trail) - 1)]
        match = re.fullmatch(r"the answer is (\w+)", text)
        rewards.append(reward(example, match[1], Rollout("r", example.id, calls=calls)) if match else 0.0)
    assert 0.1 <= sum(rewards) / len(rewards) <= 0.45
    assert sum(len(trail) - 1 for trail in trails) < sum(example.labels["hops"] for example in questions)
