"""An adapter for each module: each learns by itself, and nothing that one module does moves another's weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_llama import group, member, own_logprobs, tiny_batch, tiny_model

from tracetune.errors import CheckpointError, InvalidInput
from tracetune.trainers.endpoint.problems import Problem
from tracetune.types import GroupBatch

EACH = {"adapter_per_module": True, "learning_rate": 1e-2}


def batch_of(modules: str, seed: int = 0) -> GroupBatch:
    """A group for each letter, of the module with that name."""
    batch = tiny_batch(tiny_model(), seed=seed, sizes=[3] * len(modules), shift=0.3)
    return GroupBatch(
        [
            replace(one, members=[replace(each, module=module) for each in one.members])
            for module, one in zip(modules, batch, strict=True)
        ]
    )


def weights_of(trainer, folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Each module's adapter, read from a checkpoint."""
    trainer.save(folder)
    return {path.name.rpartition("-")[0]: load_file(path / "adapter_model.safetensors") for path in adapters(folder)}


def adapters(folder: Path) -> list[Path]:
    """The folders of a checkpoint's adapters."""
    return sorted((folder / "adapters").iterdir()) if (folder / "adapters").exists() else []


def assert_equal_to_the_bit(left, right):
    """Two adapters have the same weights."""
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def frozen_of(trainer) -> dict[str, torch.Tensor]:
    """The weights beneath, and the adapter that nobody uses."""
    return {
        name: weight.detach().clone()
        for name, weight in trainer.model.named_parameters()
        if ".lora_" not in name or ".default." in name
    }


def test_training_one_module_leaves_the_others_as_they_are(make_trainer, tmp_path):
    """Weights and moments of a module that is not in the batch stay, though its optimiser has momentum."""
    trainer = make_trainer(**EACH)
    beneath = frozen_of(trainer)
    trainer.step(batch_of("ab"))
    before = weights_of(trainer, tmp_path / "before")
    trainer.step(batch_of("bb", seed=1))
    after = weights_of(trainer, tmp_path / "after")
    assert_equal_to_the_bit(before["a"], after["a"])
    assert not all(torch.equal(before["b"][name], after["b"][name]) for name in before["b"])
    moments = [load_file(tmp_path / name / "optimizer.safetensors") for name in ("before", "after")]
    of_a = [name for name in moments[0] if ".a-" in name]
    assert len(of_a) == 14 * 2 * 3
    assert all(torch.equal(moments[0][name], moments[1][name]) for name in of_a)
    assert_equal_to_the_bit(beneath, frozen_of(trainer))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_each_module_learns_as_with_a_trainer_of_its_own(make_trainer, tmp_path, dropout):
    """One batch of two modules makes the weights that two trainers make of one each: averages, norms, dropout."""
    settings = {**EACH, "kl": 0.05, "epochs": 2, "loss": "dapo", "lora_dropout": dropout}
    together = make_trainer(**settings)
    for seed in (0, 1):
        report = together.step(batch_of("aabb", seed))
    found = weights_of(together, tmp_path / "together")
    alone, reports = {}, []
    for places, module in (((0, 1), "a"), ((2, 3), "b")):
        trainer = make_trainer(**settings)
        for seed in (0, 1):
            whole = batch_of("aabb", seed)
            last = trainer.step(GroupBatch([whole.groups[place] for place in places]))
        reports.append(last)
        alone |= weights_of(trainer, tmp_path / module)
    assert found.keys() == alone.keys() == {"a", "b"}
    for module in found:
        assert_equal_to_the_bit(found[module], alone[module])
    assert report.used == sum(each.used for each in reports)
    assert report.tokens == sum(each.tokens for each in reports)
    assert report.loss == pytest.approx(sum(each.loss for each in reports) / 2)


def test_members_of_one_group_go_to_their_modules(make_trainer, tmp_path):
    """Where groups are not by module, each member teaches the adapter of its own, and no other."""
    batch = batch_of("ab")
    mixed = GroupBatch([replace(batch.groups[0], members=[*batch.groups[0].members, *batch.groups[1].members])])
    together = make_trainer(**EACH)
    assert together.step(mixed).used == 6
    found = weights_of(together, tmp_path / "mixed")
    apart = make_trainer(**EACH)
    apart.step(batch)
    expected = weights_of(apart, tmp_path / "apart")
    for module in ("a", "b"):
        assert_equal_to_the_bit(found[module], expected[module])


def test_first_weights_follow_from_seed_and_module(make_trainer, tmp_path):
    """Whichever module is seen first, however many, an adapter begins the same; modules and seeds differ."""
    kinds = {}
    for name, order, seed in (("ab", "ab", 0), ("ba", "ba", 0), ("b", "b", 0), ("other", "b", 1)):
        # So small a rate leaves the first weights as they are: A is drawn, and B is 0.
        trainer = make_trainer(adapter_per_module=True, learning_rate=1e-30, seed=seed)
        for module in order:
            trainer.step(batch_of(module))
        kinds[name] = {
            module: {key: weight for key, weight in weights.items() if "lora_A" in key}
            for module, weights in weights_of(trainer, tmp_path / name).items()
        }
    assert_equal_to_the_bit(kinds["ab"]["b"], kinds["ba"]["b"])
    assert_equal_to_the_bit(kinds["ab"]["a"], kinds["ba"]["a"])
    assert_equal_to_the_bit(kinds["ab"]["b"], kinds["b"]["b"])
    for one, other in ((kinds["ab"]["a"], kinds["ab"]["b"]), (kinds["b"]["b"], kinds["other"]["b"])):
        assert not any(torch.equal(one[key], other[key]) for key in one)


def test_a_module_whose_gradient_is_not_finite_stands_still_alone(make_trainer, tmp_path):
    """Its members are counted, its weights stay; the other module learns."""
    batch = batch_of("ab")
    impossible = [
        replace(one, logprobs=[-1e30] * len(one.completion_ids), advantage=-1.0) for one in batch.groups[0].members
    ]
    trainer, untouched = make_trainer(**EACH), make_trainer(**EACH)
    report = trainer.step(GroupBatch([replace(batch.groups[0], members=impossible), batch.groups[1]]))
    assert (report.used, report.skipped) == (3, {"not_finite": 3})
    assert report.loss == untouched.step(GroupBatch([batch.groups[1]])).loss
    found, expected = weights_of(trainer, tmp_path / "found"), weights_of(untouched, tmp_path / "expected")
    assert_equal_to_the_bit(found["b"], expected["b"])
    # B of a fresh adapter is 0.
    assert all(not weight.any() for name, weight in found["a"].items() if "lora_B" in name)


def test_a_module_without_any_advantage_stands_still_alone(make_trainer, tmp_path):
    """Momentum of earlier steps does not move the weights of a module that has nothing to learn in this one."""
    trainer = make_trainer(**EACH)
    trainer.step(batch_of("ab"))
    before = weights_of(trainer, tmp_path / "before")
    batch = batch_of("ab", seed=1)
    constant = [replace(one, advantage=0.0) for one in batch.groups[0].members]
    report = trainer.step(GroupBatch([replace(batch.groups[0], members=constant), batch.groups[1]]))
    assert (report.used, report.skipped) == (3, {"nothing_to_learn": 3})
    assert_equal_to_the_bit(before["a"], weights_of(trainer, tmp_path / "after")["a"])


NAMES = ["plan/act", "../up", "default", "lora_A", "l", "hop.2", "问", " ", "x" * 300, "a b", "a-b"]


def test_any_name_of_a_module_has_an_adapter_of_its_own(make_trainer, tmp_path):
    """Slashes, dots, blanks, other scripts and the words of peft are names like any other, also in a checkpoint."""
    batch = GroupBatch(
        [
            group(
                member([5, 6], [8, 1], 1.0, logprobs=[-3.0, -3.0], module=name),
                member([5, 6], [9, 1], -1.0, module=name),
            )
            for name in NAMES
        ]
    )
    trainer = make_trainer(**EACH)
    with pytest.warns(UserWarning, match="no log-probabilities"):
        assert trainer.step(batch).used == 2 * len(NAMES)
    trainer.save(tmp_path / "one")
    assert len(adapters(tmp_path / "one")) == len(NAMES)
    again = make_trainer(**EACH)
    again.load(tmp_path / "one")
    again.save(tmp_path / "two")
    for one, two in zip(adapters(tmp_path / "one"), adapters(tmp_path / "two"), strict=True):
        assert_equal_to_the_bit(
            load_file(one / "adapter_model.safetensors"), load_file(two / "adapter_model.safetensors")
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_a_resumed_trainer_has_the_checkpoints_adapters_and_no_others(make_trainer, tmp_path):
    """Going back to a checkpoint forgets modules that came later; they begin again as they began."""
    trainer = make_trainer(**EACH)
    trainer.step(batch_of("a"))
    trainer.save(tmp_path / "first")
    trainer.step(batch_of("ab", seed=1))
    expected = weights_of(trainer, tmp_path / "second")
    trainer.step(batch_of("abc", seed=2))
    trainer.load(tmp_path / "first")
    assert trainer.steps_done == 1
    assert list(weights_of(trainer, tmp_path / "again")) == ["a"]
    trainer.step(batch_of("ab", seed=1))
    found = weights_of(trainer, tmp_path / "third")
    for module in ("a", "b"):
        assert_equal_to_the_bit(expected[module], found[module])


def test_a_checkpoint_of_one_adapter_is_not_one_of_many(make_trainer, tmp_path):
    """Either kind refuses the other, by the setting's name, and stays as it was."""
    shared, each = make_trainer(learning_rate=1e-2), make_trainer(**EACH)
    for trainer, name in ((shared, "shared"), (each, "each")):
        trainer.step(batch_of("ab"))
        trainer.save(tmp_path / name)
    with pytest.raises(CheckpointError, match="adapter_per_module=True, not False"):
        shared.load(tmp_path / "each")
    with pytest.raises(CheckpointError, match="adapter_per_module=False, not True"):
        each.load(tmp_path / "shared")
    adapters(tmp_path / "each")[1].joinpath("adapter_model.safetensors").unlink()
    before = weights_of(each, tmp_path / "before")
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        each.load(tmp_path / "each")
    after = weights_of(each, tmp_path / "after")
    for module in ("a", "b"):
        assert_equal_to_the_bit(before[module], after[module])


def test_a_request_is_routed_by_its_module(make_trainer):
    """A module has its adapter once it was trained, and the bare model before; a request must say whose it is."""
    trainer = make_trainer(**EACH)
    assert trainer._adapter_of("a") is None
    trainer.step(batch_of("a"))
    assert trainer._adapter_of("a") in trainer.model.peft_config
    assert trainer._adapter_of("b") is None
    with pytest.raises(Problem) as caught:
        trainer._adapter_of(None)
    assert (caught.value.status, caught.value.code) == (400, "module_missing")
    assert "x-tracetune-module" in caught.value.message


def test_the_bare_model_is_what_a_new_adapter_is(make_trainer, model):
    """A module that was not trained yet reads the log-probabilities of the model beneath, to the bit."""
    trainer = make_trainer(**EACH)
    trainer.step(batch_of("a"))
    trainer._learner("b")
    trainer._adapters.use(trainer._adapter_of("b"))
    assert own_logprobs(trainer.model, [5, 6], [7, 8, 1]) == own_logprobs(model, [5, 6], [7, 8, 1])


def test_exporting_names_the_module(make_trainer, tmp_path):
    """Where each module has an adapter one of them must be named, and where none has, none may be."""
    trainer = make_trainer(**EACH)
    with pytest.raises(InvalidInput, match="none was trained yet"):
        trainer.export(tmp_path / "model", module="a")
    trainer.step(batch_of("ab"))
    with pytest.raises(InvalidInput, match="module None to export; there are: 'a', 'b'"):
        trainer.export(tmp_path / "model")
    with pytest.raises(InvalidInput, match="'a' has none of its own"):
        make_trainer().export(tmp_path / "model", module="a")
    assert list(tmp_path.iterdir()) == []
