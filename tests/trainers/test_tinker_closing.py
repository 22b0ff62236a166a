"""What a tinker trainer opened it closes: sessions, heartbeats, connections."""

from __future__ import annotations

import logging
import os
import signal
import threading

import pytest
from looped_program import TRAIN, low_words, walk
from tinker_service import KEY, TinkerService, client_tasks
from tiny_llama import tiny_batch, tiny_model

import tracetune as tt
from tracetune.errors import TrainerError
from tracetune.trainers.tinker import TinkerTrainer


def optimize(trainer, store, **changes):
    """Two steps of a small run."""
    plan = {"steps": 2, "examples_per_step": 1, "rollouts": 4, "progress": False}
    return tt.optimize(walk, TRAIN, low_words, trainer, store=store, **{**plan, **changes})


def trainer_at(service: TinkerService) -> TinkerTrainer:
    """One that the test does not close."""
    return TinkerTrainer(service.name, base_url=service.address, api_key=KEY, timeout=60.0)


def ends(service: TinkerService) -> list[str]:
    """How the service was told that its sessions ended."""
    return [body["reason"]["type"] for body in service.bodies("sessions/finish")]


def test_after_a_run_nothing_of_the_client_is_left(tiny_folder, tmp_path, caplog):
    """Its session is finished, it does nothing by itself, and is silent when the service stops."""
    with TinkerService(tiny_folder).running() as service, caplog.at_level(logging.WARNING):
        optimize(trainer_at(service), tmp_path / "first.duckdb")
        threads = set(threading.enumerate())
        optimize(trainer_at(service), tmp_path / "second.duckdb")
        assert client_tasks() == []
        assert ends(service) == ["success", "success"]
        # The client's one loop, with a thread of its own and a pool that may grow, serves all clients of a process.
        left = {thread for thread in threading.enumerate() if thread not in threads and thread.is_alive()}
        assert {thread for thread in left if not thread.name.startswith("asyncio_")} == set()
    assert [record for record in caplog.records if record.name.startswith(("tinker", "httpx", "asyncio"))] == []


def test_training_on_what_is_stored_closes_too(service, tmp_path):
    """`tt.train` ends the session that its steps opened."""
    optimize(trainer_at(service), tmp_path / "traces.duckdb")
    tt.train(tmp_path / "traces.duckdb", trainer_at(service), held_out=0.0, progress=False)
    assert (client_tasks(), ends(service)) == ([], ["success", "success"])


def test_a_run_that_fails_closes_too(service, tmp_path):
    """The service hears that the session ended with an error."""
    service.break_next("forward_backward", "fail")
    with pytest.raises(TrainerError, match="could not compute a gradient"):
        optimize(trainer_at(service), tmp_path / "traces.duckdb")
    assert (client_tasks(), ends(service)) == ([], ["errored"])


def test_an_interrupted_run_closes_too(service, tmp_path):
    """Ctrl-C ends the session as well."""
    with pytest.raises(KeyboardInterrupt):
        optimize(
            trainer_at(service),
            tmp_path / "traces.duckdb",
            on_step=lambda step, figures: os.kill(os.getpid(), signal.SIGINT),
        )
    assert (client_tasks(), ends(service)) == ([], ["success"])


@pytest.mark.parametrize("fault", ["create_session", "create_model", "get_info"])
def test_a_session_that_could_not_begin_leaves_nothing(service, fault):
    """Whichever of the first requests is refused, no heartbeat goes on."""
    service.break_next(fault, 400)
    with pytest.raises(TrainerError):
        trainer_at(service).step(tiny_batch(tiny_model()))
    assert client_tasks() == []


def test_a_state_that_cannot_be_sampled_from_leaves_the_session_that_was(service, make_tinker, tmp_path):
    """The session that `load` opened is closed again where it fails, and the one before where it does not."""
    trainer = make_tinker()
    trainer.step(tiny_batch(tiny_model()))
    trainer.save(tmp_path)
    trainer.load(tmp_path)
    assert ends(service) == ["success"]
    trainer.step(tiny_batch(tiny_model()))
    service.break_next("load_weights", 400)
    with pytest.raises(tt.errors.CheckpointError):
        trainer.load(tmp_path)
    assert ends(service) == ["success", "errored"]
    assert trainer.step(tiny_batch(tiny_model())).step == 3


def test_a_closed_trainer_says_so(service, make_tinker, tmp_path):
    """Its weights went with its session, so it learns no more until a checkpoint is loaded."""
    trainer = make_tinker()
    trainer.step(tiny_batch(tiny_model()))
    trainer.save(tmp_path)
    trainer.close()
    for go_on in (lambda: trainer.step(tiny_batch(tiny_model())), lambda: trainer.save(tmp_path)):
        with pytest.raises(TrainerError, match=r"was closed after 1 steps, .*; load its last checkpoint"):
            go_on()
    trainer.load(tmp_path)
    assert trainer.step(tiny_batch(tiny_model())).step == 2


def test_a_service_that_is_gone_does_not_hold_up_the_end(tiny_folder):
    """The session cannot be finished there; what the client holds here is released all the same."""
    with TinkerService(tiny_folder).running() as service:
        trainer = trainer_at(service)
        trainer.step(tiny_batch(tiny_model()))
    trainer.close()
    gone = threading.Event()
    while client_tasks():
        assert not gone.wait(0.05)


def test_a_client_that_cannot_be_closed_is_left():
    """Services shaped like Tinker may have a client without `close`."""
    from tracetune.trainers.tinker.service import TrainingRun

    TrainingRun(object(), object(), 1.0).close()
