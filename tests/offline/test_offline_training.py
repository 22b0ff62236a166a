"""Training on what a store holds: from a table of logged answers to weights that answer better."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import orjson
import pytest
import torch
from cli.conftest import tracetune
from safetensors.torch import load_file

import tracetune as tt
from tracetune.demo import POLICY_FOLDER, examples, reward
from tracetune.demo.program import answer_prompt, find_person, hop_prompt
from tracetune.errors import CheckpointError, InvalidInput, TrainerError
from tracetune.offline.batches import SINGLETONS, batches_of, stored_groups
from tracetune.trainers.local import LocalTrainer
from tracetune.types import Capabilities, Group, GroupBatch

__all__ = ["tracetune"]  # a fixture

torch.set_num_threads(1)
SETTINGS = {"learning_rate": 1e-3, "threads": 1, "progress": False}


def logged_answers(questions: int) -> list[dict[str, object]]:
    """Each question's first hop and answer, right and wrong, as a service would have logged them."""
    rows: list[dict[str, object]] = []
    for example in examples("train", questions):
        facts, question = str(example.inputs["facts"]), str(example.inputs["question"])
        start, *relations = question.split()
        known = {tuple(line.split()[:2]): line.split()[2] for line in facts.splitlines()}
        trail = [start]
        for relation in relations:
            trail.append(known[trail[-1], relation])
        word = "done" if len(relations) == 1 else "more"
        hops = [
            (f"{trail[1]} {word}", 1.0),
            (f"{trail[1]} {'more' if word == 'done' else 'done'}", 0.2),
            (f"{start} {word}", 0.0),
        ]
        answers = [(f"the answer is {trail[-1]}", 1.0), (f"the answer is {start}", 0.1), (str(trail[-1]), 0.0)]
        for module, prompt, texts in (
            ("hop", hop_prompt(facts, question, [start]), hops),
            ("answer", answer_prompt(question, trail), answers),
        ):
            rows += [
                {
                    "prompt": prompt,
                    "completion": text,
                    "module": module,
                    "reward": value,
                    "example_id": example.id,
                    "rollout_id": f"{example.id}/{module}/{number}",
                    "finish_reason": "stop",
                }
                for number, (text, value) in enumerate(texts)
            ]
    return rows


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    """A log of 60 questions."""
    path = tmp_path_factory.mktemp("logs") / "answers.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, logged_answers(60))))
    return path


@pytest.fixture
def store(tracetune, tmp_path, log) -> Path:
    """A store with the log imported."""
    assert tracetune("import", "logs.duckdb", log, "--format", "rows", "--run", "yesterday").status == 0
    return tmp_path / "logs.duckdb"


def weights_of(folder: Path | None) -> dict[str, torch.Tensor]:
    """The adapter in a checkpoint."""
    assert folder is not None
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.filterwarnings("ignore:some members have no log-probabilities")
def test_good_answers_of_the_held_out_slice_grow_likelier(store):
    """What was not trained on is measured before and after, and so is what the program earns."""
    result = tt.train(
        store,
        model=POLICY_FOLDER,
        where="run = 'yesterday'",
        passes=4,
        held_out=0.2,
        program=find_person,
        val=examples("val", 6),
        reward=reward,
        **SETTINGS,
    )
    assert (result.run, result.store, result.grouping) == ("run-1", store, tt.Grouping())
    assert result.before is not None
    assert result.after is not None
    assert result.before.members == result.after.members > 20
    assert result.after.good - result.after.bad > result.before.good - result.before.bad + 0.5
    measured = (result.rollouts_before, result.rollouts_after)
    assert [(one.n, one.policy_version) for one in measured] == [
        (6, "run-1@0"),
        (6, f"run-1@{len(result.reports)}"),
    ]
    batches = tt.Store(store).sql("SELECT run, step FROM batches ORDER BY step").rows()
    assert batches == [{"run": "run-1", "step": report.step} for report in result.reports]


@pytest.mark.filterwarnings("ignore:some members have no log-probabilities")
def test_the_command_the_store_and_the_seed_give_the_same_weights(tracetune, store):
    """Twice the same command is the same adapter, to the bit; another seed is another; resumed, it stays the same."""
    arguments = ["train", store, "--where", "module = 'answer'", "--model", POLICY_FOLDER, "--set", "threads=1"]
    folders = []
    for more in (["--run", "a"], ["--run", "b"], ["--run", "c", "--seed", "1"]):
        finished = tracetune(*arguments, *more)
        assert finished.status == 0, finished.stderr
        folders.append(Path(finished.stdout.strip()))
    first, second, third = map(weights_of, folders)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)
    resumed = tracetune(*arguments, "--run", "a", "--resume")
    assert (resumed.status, Path(resumed.stdout.strip())) == (0, folders[0])


@pytest.mark.filterwarnings("ignore:some members have no log-probabilities")
def test_a_training_that_was_interrupted_goes_on_where_it_stopped(store):
    """The steps after the last checkpoint are made again, and the weights are those of a run without a break."""
    options = {"model": POLICY_FOLDER, "members_per_step": 12, "held_out": 0.0, **SETTINGS}
    whole = tt.train(store, run="whole", **options)
    assert len(whole.reports) > 12

    def interrupt(step: int, figures: dict[str, float]) -> None:
        if step == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tt.train(store, run="broken", on_step=interrupt, **options)
    rest = tt.train(store, run="broken", resume=True, **options)
    assert [report.step for report in rest.reports] == [report.step for report in whole.reports[10:]]
    expected, found = weights_of(whole.checkpoint), weights_of(rest.checkpoint)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_logs_without_repeated_examples_are_compared_across_them(tmp_path):
    """One answer an example: groups are by module and invocation, and steps are made of members, not of one group."""
    store = tt.Store(tmp_path / "logs.duckdb")
    store.add_rollouts(
        {"example_id": f"q{number}", "reward": number % 3, "calls": [{"module": "say", "completion": str(number)}]}
        for number in range(40)
    )
    groups = stored_groups(store, None, None, 0.25)
    assert groups.grouping == SINGLETONS
    assert groups.train.n_members + groups.held_out.n_members == 40
    assert 4 <= groups.held_out.n_members <= 16
    batches = batches_of(groups.train, members=8, passes=2, seed=0)
    trained = [member.text for batch in batches for group in batch for member in group.members]
    assert sorted(trained) == sorted(2 * [member.text for group in groups.train for member in group.members])
    assert {batch.n_members for batch in batches[:-1]} <= {8, groups.train.n_members % 8}


def test_what_is_held_out_does_not_depend_on_what_else_there_is(tmp_path):
    """An example that is held out of a small log is held out of a large one."""
    held_out = []
    for size in (30, 60):
        store = tt.Store(tmp_path / f"{size}.duckdb")
        store.add_rollouts(
            {"example_id": f"q{number}", "reward": index, "calls": [{"module": "say", "completion": str(index)}]}
            for number in range(size)
            for index in range(2)
        )
        groups = stored_groups(store, None, None, 0.3)
        assert groups.grouping == tt.Grouping()
        held_out.append({group.key["example_id"] for group in groups.held_out})
    assert held_out[0] == {example for example in held_out[1] if int(example[1:]) < 30}
    assert 0 < len(held_out[0]) < 30


def test_every_group_is_in_each_pass_once():
    """Batches are whole groups, in another order each pass."""
    groups = GroupBatch([Group({"example_id": str(number)}, [None] * 5) for number in range(7)])
    batches = batches_of(groups, members=12, passes=2, seed=3)
    names = [[group.key["example_id"] for group in batch] for batch in batches]
    assert [len(batch) for batch in names] == [3, 3, 1, 3, 3, 1]
    first, second = list(chain(*names[:3])), list(chain(*names[3:]))
    assert sorted(first) == sorted(second) == [str(number) for number in range(7)]
    assert first != second
    assert batches_of(groups, members=12, passes=2, seed=3) == batches


class Prompts:
    """A trainer that does not learn by steps."""

    capabilities = Capabilities(prompts=True)

    def fit(self, env):
        """Nothing is asked of it here."""


MISTAKES = [
    ({"where": "run = 'tomorrow'"}, InvalidInput, "matches no call; the runs of .*logs.duckdb are yesterday"),
    (
        {"grouping": tt.Grouping(modules=("hops",))},
        InvalidInput,
        "no call is of the modules hops; there are answer, hop",
    ),
    ({"where": "reward > 0.9"}, InvalidInput, "can be trained on .*tracetune lint .* says what to do"),
    ({"held_out": 1.0}, InvalidInput, "held_out is a share of the examples"),
    ({"passes": 0}, InvalidInput, "passes must be at least 1, not 0"),
    ({"program": find_person}, InvalidInput, "program, val, reward|needs a reward"),
    ({"trainer": Prompts()}, TrainerError, "Prompts cannot learn from what is stored: it changes no weights"),
    ({"resume": True}, CheckpointError, "has no run to resume; start without resume"),
    ({"trainer": Prompts(), "kl": 0.1}, InvalidInput, "kl: the trainer is made already"),
]


@pytest.mark.parametrize(("arguments", "kind", "said"), MISTAKES)
def test_what_cannot_be_trained_on_is_refused_in_a_sentence(store, arguments, kind, said):
    """Nothing is recorded, and the sentence says what to do."""
    before = tt.Store(store).sql("SELECT count(*) AS n FROM policies").rows()
    options = {"model": POLICY_FOLDER, "threads": 1, "progress": False, **arguments}
    if not isinstance(options.get("trainer", ""), str):
        del options["model"], options["threads"]
    with pytest.raises(kind, match=said):
        tt.train(store, **options)
    assert tt.Store(store).sql("SELECT count(*) AS n FROM policies").rows() == before


def test_the_command_needs_a_model_and_a_store(tracetune, tmp_path):
    """One sentence each."""
    finished = tracetune("train", "nowhere.duckdb", "--model", POLICY_FOLDER)
    assert (finished.status, "there is no store nowhere.duckdb" in str(finished)) != (0, False)
    tt.Store(tmp_path / "empty.duckdb")
    assert tracetune("train", "empty.duckdb").status != 0


def test_modules_may_be_trained_alone(store):
    """Of two modules the one that is named learns; how likely the other's answers are changes nothing of that."""
    trainer = LocalTrainer(POLICY_FOLDER, adapter_per_module=True, importance="token", threads=1)
    with pytest.warns(UserWarning, match="no log-probabilities"):
        result = tt.train(store, trainer, grouping=tt.Grouping(modules=("hop",)), progress=False)
    assert {group.key["module"] for group in stored_groups(tt.Store(store), None, result.grouping, 0.0).train} == {
        "hop"
    }
    assert result.before.members > 0


def test_trl_learns_from_texts_and_measures_the_held_out_slice_as_local_does(store):
    """Both hold texts against the model without its adapter, and find the same likelihoods before the first step."""
    found = []
    for kind in ("local", "trl"):
        with pytest.warns(UserWarning, match="those of the model without its adapter stand in"):
            result = tt.train(
                store, kind, model=POLICY_FOLDER, where="module = 'answer'", held_out=0.5, members_per_step=500,
                threads=1, progress=False,
            )  # fmt: skip
        found.append(result.before)
    assert found[0].members == found[1].members > 0
    assert (found[1].good, found[1].bad) == pytest.approx((found[0].good, found[0].bad), abs=1e-4)
