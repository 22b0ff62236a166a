"""How the bundled policy is made: from pre-training questions alone, through the program's own prompts."""

from __future__ import annotations

import random
from itertools import islice

import pytest

torch = pytest.importorskip("torch")

from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402 - after torch is known to be there

from tracetune.demo.demonstrations import CLEAN, Demonstrator, demonstrations  # noqa: E402
from tracetune.demo.make_policy import encode, make_policy, pack  # noqa: E402
from tracetune.demo.small_llama import build_model, build_tokenizer  # noqa: E402
from tracetune.demo.task import examples, split_of  # noqa: E402
from tracetune.types import Example  # noqa: E402

ANN = Example(
    "q", {"facts": "ann friend bob\nbob boss cal", "question": "ann friend boss"}, {"answer": "cal", "hops": 2}
)


def scenes(n: int) -> list:
    """The first scenes of a clean demonstrator."""
    return list(islice(demonstrations(examples("pretrain", 200), CLEAN, random.Random(0)), n))


def test_it_is_shown_pre_training_questions_only():
    """Every prompt of 300 scenes asks a question of the pre-training split."""
    shown = set()
    for demonstration in (one for scene in scenes(300) for one in scene):
        lines = demonstration.prompt.split("\n")
        if lines[0] == "say the answer":
            shown.add(lines[1].removeprefix("question "))
        else:
            path = lines[-1].split()
            shown.add(" ".join([path[0], *path[1::2]]))
    assert len(shown) > 300
    assert {split_of(question) for question in shown} == {"pretrain"}


@pytest.mark.parametrize(
    ("trail", "completion"),
    [
        (["ann"], "bob more"),
        (["ann", "bob"], "cal done"),
        (["ann", "bob", "cal"], "cal done"),
        (["ann", "dan"], "dan done"),
    ],
)
def test_a_clean_demonstrator_follows_the_facts(trail, completion):
    """It looks up the next name, stops with the question, and stays where no fact leads on."""
    assert CLEAN.hop(ANN, trail, random.Random(0)) == completion


def test_a_sloppy_demonstrator_slips_as_it_is_told():
    """Each slip, made certain, does what its description says."""
    generator = random.Random(0)
    assert Demonstrator(early=1.0).hop(ANN, ["ann"], generator) == "bob done"
    assert Demonstrator(surplus=1.0).hop(ANN, ["ann", "bob"], generator) == "cal more"
    assert Demonstrator(wrong_form=1.0).hop(ANN, ["ann"], generator) == "bob"
    assert Demonstrator(wrong_form=1.0).answer(["ann", "bob"], generator) == "bob"
    wrong = {Demonstrator(wrong_name=1.0).hop(ANN, ["ann"], generator) for _ in range(100)}
    assert wrong == {"ann more", "bob more", "cal more"}


def test_a_packed_scene_teaches_what_its_demonstrations_do():
    """The loss of one packed sequence is the loss of its demonstrations one by one."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    pairs = [encode(tokenizer, demonstration) for demonstration in scenes(1)[0]]
    scene = pack(pairs)
    assert len(scene.tokens) < sum(len(prompt) + len(completion) for prompt, completion in pairs)
    mask = torch.where(scene.sees(), 0.0, torch.finfo(torch.float32).min)
    with torch.no_grad():
        packed = model(
            input_ids=scene.tokens[None],
            position_ids=scene.positions[None],
            attention_mask=mask[None, None],
            labels=scene.targets[None],
        ).loss.item()
        losses = [
            model(
                input_ids=torch.tensor([prompt + completion]),
                labels=torch.tensor([[-100] * len(prompt) + completion]),
            ).loss.item()
            * len(completion)
            for prompt, completion in pairs
        ]
    assert packed == pytest.approx(sum(losses) / sum(len(completion) for _, completion in pairs), rel=1e-4)


def test_a_few_steps_write_a_folder_that_transformers_loads(tmp_path):
    """The script's whole way, cut short: the same seed gives the same weights."""
    for name in ("one", "two"):
        make_policy(tmp_path / name, seed=3, clean_steps=2, sloppy_steps=1, batch_size=1, n_questions=20)
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("one", "two"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert {parameter.dtype for parameter in one.parameters()} == {torch.bfloat16}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "one")
    assert (tokenizer.eos_token, one.generation_config.eos_token_id) == ("</s>", tokenizer.eos_token_id)
