"""Teachers: other models make a share of the training rollouts, and the store and the groups say whose is whose."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from endpoint.vllm_like import VllmLike, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from looped_program import TRAIN, VAL, ask, hop, low_words, train, trainer, walk
from tiny_llama import tiny_model, tiny_tokenizer

import tracetune as tt
from tracetune.errors import InvalidInput, NoCompletions
from tracetune.online.teachers import whose_rollouts
from tracetune.trainers.endpoint import LocalEndpoint
from tracetune.types import Capabilities, Completion, Member, Teacher
from tracetune.types.teachers import checked_teachers


class Unrecorded:
    """The journal of a service that keeps its tokens to itself."""

    def completion(self, completion: Completion) -> None: ...

    def policy(self, *args: Any, **kwargs: Any) -> None: ...

    batch = job = policy


@pytest.fixture(scope="module")
def big() -> Iterator[LocalEndpoint]:
    """Another tiny model, served to whoever has the key: its texts are all that is known of it."""
    with LocalEndpoint(
        tiny_model(7), tiny_tokenizer(), name="big-1", version="big@0", journal=Unrecorded(), threads=1
    ) as one:
        yield one


def teacher_at(endpoint: LocalEndpoint, **settings: Any) -> Teacher:
    """A teacher that answers there."""
    policy = endpoint.policy
    return Teacher("big", policy.base_url, policy.api_key, **{"model": "big-1", "share": 0.25} | settings)


def rows(store: Path, query: str) -> list[tuple[Any, ...]]:
    """The answer to a query, as plain tuples."""
    return [tuple(row.values()) for row in tt.Store(store).sql(query).rows()]


def members_of(store: Path) -> list[Member]:
    """The members of all training groups."""
    aligned = tt.Grouping(drop_constant=False)
    return [member for group in tt.Store(store).groups(aligned, where="split = 'train'") for member in group.members]


@pytest.fixture(scope="module")
def figures() -> list[dict[str, float]]:
    """What the steps of `taught` announced."""
    return []


@pytest.fixture(scope="module")
def taught(big: LocalEndpoint, figures: list[dict[str, float]], tmp_path_factory: pytest.TempPathFactory) -> tt.Result:
    """Two steps of two examples, of whose eight rollouts two are a teacher's."""
    store = tmp_path_factory.mktemp("taught") / "a.duckdb"
    announced = {"on_step": lambda _, said: figures.append(said)}
    return train(store, rollouts=8, val=VAL, teachers=[teacher_at(big)], **announced)


def test_a_teacher_makes_its_share_of_each_example(taught: tt.Result):
    """Two of eight rollouts of each example and step are the teacher's, and of validation none."""
    assert rows(
        taught.store,
        "SELECT split, step, policy_version, list(DISTINCT n ORDER BY n) AS each, count(*) AS examples FROM ("
        "  SELECT split, step, example_id, policy_version, count(*) AS n FROM rollouts GROUP BY ALL"
        ") GROUP BY ALL ORDER BY ALL",
    ) == [
        ("train", 1, "run-1@0", [6], 2),
        ("train", 1, "teacher:big", [2], 2),
        ("train", 2, "run-1@1", [6], 2),
        ("train", 2, "teacher:big", [2], 2),
        ("val", 0, "run-1@0", [1], len(VAL)),
        ("val", 2, "run-1@2", [1], len(VAL)),
    ]


def test_each_call_says_whose_it_is_and_what_is_known_of_it(taught: tt.Result):
    """A teacher's calls have its name as model and no tokens; the policy's are exact."""
    assert rows(
        taught.store,
        "SELECT DISTINCT model, split_part(policy_version, '@', 1) AS version, exact, on_policy, "
        "completion_token_ids IS NULL AS unknown FROM calls WHERE split = 'train' ORDER BY ALL",
    ) == [("big", "teacher:big", False, False, True), ("policy", "run-1", True, True, False)]
    assert rows(
        taught.store,
        "SELECT count(*) FROM calls JOIN rollouts USING (rollout_id) "
        "WHERE calls.policy_version <> rollouts.policy_version",
    ) == [(0,)]


def test_the_teacher_is_among_the_policies(taught: tt.Result):
    """The store knows which model a teacher's version is."""
    assert rows(taught.store, "SELECT version, step, model, trainer FROM policies ORDER BY ALL") == [
        ("run-1@0", 0, "policy", "local"),
        ("run-1@1", 1, "policy", "local"),
        ("run-1@2", 2, "policy", "local"),
        ("teacher:big", 0, "big-1", "teacher"),
    ]


def test_groups_hold_both_and_say_which_is_which(taught: tt.Result):
    """Members of the teacher and of the policy are compared with each other, and marked."""
    groups = tt.Store(taught.store).groups(tt.Grouping(drop_constant=False), where="split = 'train'")
    answers = [group for group in groups if group.key["module"] == "answer"]
    assert len(answers) == 4
    for group in answers:
        assert sorted(member.teacher or "" for member in group.members) == [""] * 6 + ["big"] * 2
        mean = sum(member.reward for member in group.members) / 8
        assert all((member.advantage > 0) == (member.reward > mean) for member in group.members if member.advantage)
    for member in members_of(taught.store):
        assert (member.teacher is None) == member.is_exact


def test_the_reward_of_a_step_is_the_policys(taught: tt.Result, figures: list[dict[str, float]]):
    """What a step reports as its reward is the policy's own, with the teacher's beside it."""
    query = "SELECT policy_version, avg(reward) FROM rollouts WHERE split = 'train' AND step = 1 GROUP BY ALL"
    means = dict(rows(taught.store, query))
    assert figures[0]["reward"] == pytest.approx(means["run-1@0"])
    assert figures[0]["teacher_reward"] == pytest.approx(means["teacher:big"])


def test_a_resumed_run_has_the_same_split(taught: tt.Result, big: LocalEndpoint, tmp_path: Path):
    """Which rollouts are a teacher's depends on seed, step and example, not on where a run was cut."""
    query = "SELECT step, example_id, rollout_index FROM rollouts WHERE policy_version = 'teacher:big' ORDER BY ALL"
    asked = {"rollouts": 8, "teachers": [teacher_at(big)]}
    train(tmp_path / "b.duckdb", steps=1, **asked)
    resumed = train(tmp_path / "b.duckdb", steps=2, resume=True, **asked)
    assert len(rows(taught.store, query)) == 2 * 2 * 2
    assert rows(resumed.store, query) == rows(taught.store, query)


def test_the_tokens_of_a_teacher_that_returns_them_are_known(tmp_path: Path):
    """A teacher that answers as vLLM does has exact members, sampled as the policy's are.

    Where its distribution was bent, the tokens come out of the store without log-probabilities.
    """

    @tt.module
    def bend(word: str) -> str:
        return ask(word, **({"logit_bias": {"5": 1}} if tt.policy().model == "big" else {}))

    @tt.program
    def twice(word: str) -> str:
        return bend(hop(word))

    with serving(VllmLike(prompt="w2 w3")) as service:
        teacher = Teacher("big", service.upstream.base_url, "key", "base", share=0.5, records_tokens=True)
        result = train(tmp_path / "a.duckdb", program=twice, steps=1, teachers=[teacher])
    taught = [member for member in members_of(result.store) if member.teacher == "big"]
    assert {member.module for member in taught} == {"hop", "bend"}
    for member in taught:
        assert (member.policy_version, list(member.prompt_ids or ())) == ("teacher:big", [2, 3])
        assert member.sampling == tt.Sampling(temperature=1.0, top_p=1.0, max_tokens=3)
        assert member.on_policy
        assert len(member.completion_ids or ()) > 0
        if member.module == "hop":
            assert len(member.logprobs or ()) == len(member.completion_ids or ())
        else:
            assert member.logprobs is None


def test_a_name_that_is_hard_coded_leads_to_the_teacher(big: LocalEndpoint, tmp_path: Path):
    """Inside a teacher's rollout the policy's name, and each that is mapped to it, mean the teacher."""

    @tt.program
    def fixed(word: str) -> str:
        return ask(ask(word, model="gpt-4o-mini"), model="policy")

    mapped = {"gpt-4o-mini": "policy"}
    result = train(tmp_path / "a.duckdb", program=fixed, steps=1, models=mapped, teachers=[teacher_at(big)])
    assert rows(
        result.store,
        "SELECT policy_version, model, count(*) FROM calls GROUP BY ALL ORDER BY ALL",
    ) == [
        ("run-1@0", "gpt-4o-mini", 6),
        ("run-1@0", "policy", 6),
        ("teacher:big", "gpt-4o-mini", 2),
        ("teacher:big", "policy", 2),
    ]


def test_a_program_that_never_asks_the_teacher_is_found_out(big: LocalEndpoint, tmp_path: Path):
    """A client that was made once for all sends a teacher's rollouts elsewhere: the first step stops and says so."""
    first: list[tt.Policy] = []

    @tt.program
    def stubborn(word: str) -> str:
        first.append(tt.policy())
        return ask(word, to=first[0])

    with pytest.raises(NoCompletions, match=r"rollouts of teacher 'big' in step 1 made 2 calls and none reached it"):
        train(tmp_path / "a.duckdb", program=stubborn, val=VAL, teachers=[teacher_at(big)])


def test_a_teacher_that_refuses_costs_its_own_rollouts(big: LocalEndpoint, tmp_path: Path):
    """The rollouts of a teacher whose key is wrong fail and are counted; the policy's go on."""
    wrong = replace(teacher_at(big), api_key="wrong")
    with pytest.warns(UserWarning, match=r"train step 1: 2 of 8 rollouts failed, the first with AuthenticationError"):
        result = train(tmp_path / "a.duckdb", steps=1, teachers=[wrong])
    assert rows(result.store, "SELECT policy_version, status, count(*) FROM rollouts GROUP BY ALL ORDER BY ALL") == [
        ("run-1@0", "ok", 6),
        ("teacher:big", "error", 2),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 0.0}, "give one above 0 and below 1"),
        ({"share": 1.0}, "give one above 0 and below 1"),
        ({"name": "policy"}, "is not 'policy': 'policy'"),
        ({"name": "a b"}, "made of letters"),
        ({"base_url": "localhost:1"}, "give one with http"),
    ],
)
def test_a_teacher_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str):
    """A teacher says what is wrong with it as soon as it is made, and never shows its key."""
    good = {"name": "big", "base_url": "http://x/v1", "api_key": "secret", "model": "m", "share": 0.5}
    assert "secret" not in repr(Teacher(**good))
    with pytest.raises(InvalidInput, match=re.escape(message)):
        Teacher(**good | changes)


class Prompts:
    """A trainer that changes no weights."""

    capabilities = Capabilities(prompts=True)

    def fit(self, env: Any) -> tt.Policy:
        raise AssertionError("it is refused before")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shares": (0.1,)}, "makes none of 4 rollouts with a share of 0.1"),
        ({"shares": (0.5, 0.5)}, "leave none to the policy"),
        ({"shares": (0.25, 0.25), "names": ("big", "big")}, "two teachers have the same name: big, big"),
        ({"shares": (0.25,), "export_env": True}, "build the client from tt.policy() inside the program"),
        ({"shares": (0.25,), "trainer": Prompts()}, "changes no weights and learns from no teacher"),
    ],
)
def test_teachers_that_cannot_be_served_are_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    """Settings that leave something without a rollout, or rollouts without a way to ask, are refused at the start."""
    shares, names = changes["shares"], changes.get("names", ("big", "bigger"))
    teachers = [
        Teacher(name, "http://127.0.0.1:9/v1", "k", "m", share=share)
        for name, share in zip(names, shares, strict=False)
    ]
    store = tmp_path / "a.duckdb"
    asked = {"trainer": trainer(), "rollouts": 4, "progress": False} | changes
    asked = {name: value for name, value in asked.items() if name not in ("shares", "names")}
    with pytest.raises(InvalidInput, match=re.escape(message)):
        tt.optimize(walk, TRAIN, low_words, store=store, teachers=teachers, **asked)
    assert rows(store, "SELECT count(*) FROM rollouts") == [(0,)]


def test_a_single_rollout_is_the_policys():
    """Whatever the shares are, a trainer that asks for fewer rollouts than the plan has gets some of the policy's."""
    half = Teacher("half", "http://x/v1", "k", "m", share=0.5)
    assert whose_rollouts([half], 1, "") == [None]
    assert whose_rollouts([half, replace(half, name="other")], 2, "").count(None) == 1


@settings(max_examples=50)
@given(
    shares=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4),
    total=st.integers(1, 40),
    seed=st.text(max_size=8),
)
def test_shares_are_exact_whatever_they_are(shares: Sequence[float], total: int, seed: str):
    """Each teacher has its share rounded to whole rollouts, the policy the rest, at the same places each time."""
    teachers = [Teacher(f"t{index}", "http://x/v1", "k", "m", share) for index, share in enumerate(shares)]
    try:
        checked_teachers(teachers, total)
    except InvalidInput:
        return
    makers = whose_rollouts(teachers, total, seed)
    counts = [makers.count(teacher) for teacher in teachers]
    assert len(makers) == total
    assert makers.count(None) == total - sum(counts) >= 1
    assert all(abs(count - share * total) <= 0.5 + 1e-9 for count, share in zip(counts, shares, strict=True))
    assert whose_rollouts(teachers, total, seed) == makers
