"""A Tinker service that fails, is slow, or has too much to do: what the trainer says, and what is never done twice."""

from __future__ import annotations

import pytest
import torch
from tiny_llama import tiny_batch, tiny_model

from tracetune.errors import TrainerError
from tracetune.trainers.tinker import TinkerTrainer


def weights_after(service, trainer, *seeds: int) -> dict[str, torch.Tensor]:
    """The adapter after steps on stored batches."""
    for seed in seeds:
        trainer.step(tiny_batch(tiny_model(), seed=seed, shift=0.3))
    return service.learner.copy()


@pytest.mark.parametrize("path", ["forward_backward", "optim_step"])
@pytest.mark.parametrize("fault", ["lose", 500, 429])
def test_a_request_that_is_sent_again_trains_once(service, make_tinker, path, fault):
    """Where an answer is lost, or the service is busy, the weights are those of an undisturbed step, to the bit."""
    expected = weights_after(service, make_tinker(learning_rate=1e-2), 0)
    service.break_next(path, fault)
    asked = len(service.bodies(path))
    found = weights_after(service, make_tinker(learning_rate=1e-2), 0)
    assert len(service.bodies(path)) == asked + 2
    assert service.learner.updates == 1
    assert [name for name, weight in expected.items() if not torch.equal(weight, found[name])] == []


@pytest.mark.parametrize(
    ("path", "what"), [("forward_backward", "compute a gradient"), ("optim_step", "update the weights")]
)
def test_a_step_that_the_service_breaks_off_says_so(service, make_tinker, tmp_path, path, what):
    """The error says what the service was asked for and why it could not; the step does not count."""
    trainer = make_tinker()
    trainer.save(tmp_path)
    batch = tiny_batch(tiny_model())
    service.break_next(path, "fail")
    with pytest.raises(TrainerError, match=rf"^the tinker service could not {what} \(RequestFailedError: .*on fire"):
        trainer.step(batch)
    assert trainer.steps_done == 0
    for go_on in (lambda: trainer.step(batch), lambda: trainer.save(tmp_path / "after")):
        with pytest.raises(TrainerError, match=r"step 1 ended halfway, .*; load the last checkpoint"):
            go_on()
    assert not (tmp_path / "after").exists()
    trainer.load(tmp_path)
    assert trainer.step(batch).step == 1


def test_a_service_that_never_answers_is_not_waited_for_forever(service, make_tinker):
    """After `timeout` seconds the trainer says what it waited for."""
    trainer = make_tinker()
    trainer._run()._timeout = 1.0  # once the adapter is there, which is not what is waited for here
    service.break_next("forward_backward", "hang")
    with pytest.raises(TrainerError) as caught:
        trainer.step(tiny_batch(tiny_model()))
    assert str(caught.value) == (
        "the tinker service did not compute a gradient within 1 s; see whether it is up, or give the trainer a "
        "longer timeout"
    )


def test_a_key_that_is_not_known_is_said(make_tinker):
    """The reason of the service stands in the error."""
    trainer = make_tinker(api_key="tml-other")
    with pytest.raises(
        TrainerError, match=r"could not open a session \(AuthenticationError: .*; check its address, its"
    ):
        trainer.step(tiny_batch(tiny_model()))


def test_a_model_that_the_service_does_not_have_is_said(service):
    """The trainer asks when it first needs the adapter, and says that it could not be made."""
    trainer = TinkerTrainer("Qwen/Qwen3-8B", base_url=service.address, api_key="tml-loopback")
    with pytest.raises(TrainerError, match=r"could not make the adapter \(BadRequestError"):
        trainer.step(tiny_batch(tiny_model()))


def test_numbers_that_are_not_finite_end_the_run(service, make_tinker):
    """A gradient that is not a number has spoilt the weights there: the trainer goes no further."""
    trainer = make_tinker()
    trainer.step(tiny_batch(tiny_model()))
    service.learner.put({name: weight * torch.nan for name, weight in service.learner.copy().items()})
    with pytest.raises(TrainerError, match="computed numbers in step 2 that are not finite"):
        trainer.step(tiny_batch(tiny_model()))
    with pytest.raises(TrainerError, match="ended halfway"):
        trainer.step(tiny_batch(tiny_model()))


def test_a_service_without_a_base_model_to_compare_with_is_said(service, make_tinker, monkeypatch):
    """Not every service gives log-probabilities of prompts: the error says what can be done without them."""
    monkeypatch.setattr("tinker_service.prompt_logprobs", lambda model, prompt: None)
    trainer = make_tinker(kl=0.1)
    for _ in range(2):  # nothing was trained: the step may be tried again
        with pytest.raises(TrainerError, match=r"gave no log-probabilities of the base model; .* set kl=0"):
            trainer.step(tiny_batch(tiny_model()))
    assert service.bodies("optim_step") == []
