"""What each of several processes does that train together: `accelerate launch … launched_training.py FOLDER`.

Each writes what it saw to `FOLDER/<rank>.json`, and its weights beside that.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from looped_program import TRAIN, VAL, low_words, walk
from safetensors.torch import save_file
from tiny_llama import EOS, WORDS, group, member, perturb, tiny_batch, tiny_model, tiny_tokenizer

import tracetune as tt
from tracetune.errors import TrainerError
from tracetune.trainers.trl import TrlTrainer
from tracetune.types import GroupBatch, Member

RANK = int(os.environ.get("RANK", "0"))
SETTINGS: dict[str, Any] = {"learning_rate": 0.01, "token_budget": 40, "kl": 0.05, "epochs": 2}


def trainer(**settings: Any) -> TrlTrainer:
    """A trainer of the tiny model on the CPU."""
    return TrlTrainer((tiny_model(), tiny_tokenizer()), device="cpu", threads=1, **(SETTINGS | settings))


def batches() -> list[GroupBatch]:
    """Two stored batches, the second of one member fewer than there are processes."""
    model = tiny_model()
    return [tiny_batch(model, seed=3, sizes=(5, 3, 2)), tiny_batch(model, seed=4, sizes=(1,))]


def step_on_stored(learner: TrlTrainer) -> list[dict[str, Any]]:
    """The reports of a step on each of the stored batches, by a policy that is no longer the one that sampled."""
    perturb(learner.model, 0.02)
    return [learner.step(batch).as_dict() | {"seconds": 0.0} for batch in batches()]


def step_on_pairs(method: str) -> dict[str, Any]:
    """The report of a second step on three groups of two, of which two processes cannot have equally many."""
    learner = trainer(method=method, learning_rate=1e-3, epochs=1)
    groups = [
        group(pair_member(word, [WORDS.index(word), 8, EOS], "w3", 1.0), pair_member(word, [6, EOS], "w1", 0.0))
        for word in ("w4", "w7", "w9")
    ]
    learner.step(GroupBatch(groups))
    return learner.step(GroupBatch(groups)).as_dict() | {"seconds": 0.0}


def pair_member(word: str, completion_ids: list[int], text: str, reward: float) -> Member:
    """A completion of a prompt of one word."""
    messages = ({"role": "user", "content": word},)
    prompt_ids = [2, WORDS.index(word), 3]
    return member(prompt_ids, completion_ids, reward - 0.5, text=text, reward=reward, messages=messages)


def weights(learner: TrlTrainer) -> dict[str, torch.Tensor]:
    """What has been learned."""
    return {name: weight.detach() for name, weight in learner.model.named_parameters() if weight.requires_grad}


def optimise(folder: Path, on_step: Any = None, **more: Any) -> tt.Result:
    """Two steps of the looped program, that notes where it runs."""

    @tt.program
    def noted(word: str) -> str:
        (folder / f"program-ran-in-{RANK}").touch()
        return walk.__wrapped__(word)  # type: ignore[attr-defined]  # the undecorated one

    return tt.optimize(
        noted, TRAIN, low_words, trainer(), store=folder / "t.duckdb", on_step=on_step,
        **{"steps": 2, "examples_per_step": 2, "rollouts": 4, "progress": False} | more,
    )  # fmt: skip


def fail(step: int, figures: dict[str, Any]) -> None:
    """A tracker that breaks."""
    raise ConnectionError("the tracker is away")


def main(folder: Path) -> None:
    """All of it, one after the other, in this process."""
    seen: dict[str, Any] = {}
    stored = trainer(learning_rate=1e-3)
    seen["stored"] = step_on_stored(stored)
    seen["pairs"] = [step_on_pairs(method) for method in ("dpo", "sft")]
    save_file(weights(stored), folder / f"stored-{RANK}.safetensors")

    result = optimise(folder, val=VAL)
    seen["online"] = [result.run, str(result.checkpoint), result.after and result.after.rewards, len(result.reports)]
    try:
        optimise(folder, on_step=fail, steps=1)
    except (ConnectionError, TrainerError) as error:
        seen["failed"] = f"{type(error).__name__}: {error}"
    resumed = optimise(folder, steps=3, run="run-1", resume=True)
    seen["resumed"] = [report.step for report in resumed.reports]
    (folder / f"{RANK}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
