"""The trl trainer: mmGRPO on a LoRA adapter, its loss and its updates by TRL and accelerate."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import peft
import torch

from tracetune.errors import InvalidInput
from tracetune.trainers.base import Endpoint, WeightTrainer
from tracetune.trainers.local.checkpoint import TrainerState, load_checkpoint, model_fingerprint, save_checkpoint
from tracetune.trainers.local.lora import Adapter
from tracetune.trainers.local.members import (
    TrainableMember,
    chat_tokeniser,
    has_something_to_learn,
    trainable_members,
)
from tracetune.trainers.local.schedule import rate_factor
from tracetune.trainers.trl.grpo import GroupRelative
from tracetune.trainers.trl.settings import TrlSettings
from tracetune.trainers.trl.stepwise import Update
from tracetune.trainers.trl.team import Team
from tracetune.types import Capabilities, Environment, GroupBatch, Plan, Policy, StepReport

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Lesson:
    """What every process needs to take part in a step.

    Attributes:
        state: the leader's adapter and optimiser, where the others may have another.
    """

    step: int
    members: list[TrainableMember]
    skipped: Counter[str]
    learning_rate: float
    state: dict[str, Any] | None


class TrlTrainer(WeightTrainer):
    """Trains a LoRA adapter through TRL.

    Args:
        model: a Hugging Face id, a checkpoint's folder, a GGUF file, or a model with its
            tokenizer; such a model is changed in place.
        dtype: of the model's weights; the adapter's are always float32.
        device: "auto" is where accelerate puts it, "cpu" keeps it from a GPU.
        threads: of PyTorch; None keeps as many as it has now.
        settings: what `TrlSettings` has: `learning_rate`, `kl`, `lora_rank` and so on.

    Raises:
        InvalidInput: if a setting is unknown or cannot be used.
        ModelNotFound: if there is no model where `model` says.

    Example:
        >>> trainer = TrlTrainer("HuggingFaceTB/SmolLM2-135M-Instruct", learning_rate=3e-4)  # doctest: +SKIP
        >>> trainer.step(store.groups(Grouping.paper())).grad_norm  # doctest: +SKIP
        0.41

    Reference:
        Multi-module GRPO (arXiv 2508.04660), Eqs. 7 to 9, as `LocalTrainer`, whose loss and
        gradients these are.
    """

    name = "trl"
    capabilities = Capabilities(weights=True)

    def __init__(
        self,
        model: str | Path | tuple[Any, Any],
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "auto",
        threads: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if device not in ("auto", "cpu"):
            raise InvalidInput(f"the trl trainer's device is {device!r}; accelerate chooses it: give 'auto', or 'cpu'")
        self.settings = TrlSettings.of(settings)
        self._threads = threads or torch.get_num_threads()
        if isinstance(model, tuple):
            base, self.tokenizer = model
        else:
            from tracetune.trainers.models import load_model

            base, self.tokenizer = load_model(model, dtype=dtype)
        self._fingerprint = model_fingerprint(dict(base.named_parameters()))
        self._adapter = Adapter(
            base,
            rank=self.settings.lora_rank,
            alpha=self.settings.lora_alpha,
            dropout=self.settings.lora_dropout,
            seed=self.settings.seed,
        )
        self._optimizer = torch.optim.AdamW(
            list(self._adapter.parameters.values()), lr=self.settings.learning_rate, weight_decay=0.0
        )
        self._trl = GroupRelative(
            self._adapter.model,
            self.tokenizer,
            self._optimizer,
            self.settings,
            use_cpu=device == "cpu" or not torch.accelerator.is_available(),
        )
        self._team = Team()
        self._state_is_news = False
        self._warned = False

    @property
    def model(self) -> Any:
        """The model with its adapter."""
        return self._adapter.model

    def prepare(self, plan: Plan) -> None:
        """Let the schedule fall over the plan's steps, unless it was told otherwise."""
        if self.settings.schedule != "constant" and self.settings.total_steps is None:
            self.settings = self.settings.model_copy(update={"total_steps": plan.steps})

    def endpoint(self, env: Environment, version: str) -> Endpoint:
        """A server of the model as it learns, in this process."""
        from tracetune.trainers.endpoint import LocalEndpoint

        return LocalEndpoint(
            self.model,
            self.tokenizer,
            name="policy",
            version=version,
            journal=env.journal,
            models=env.plan.models,
            forward=env.plan.upstream,
            threads=self._threads,
        )

    def together(self, work: Callable[[], T]) -> T:
        """What `work` gives: done by the first process, while all of them take part in its steps.

        Where there is one process, it does the work. Where `accelerate launch` started
        several, the first does it; the others never touch the program or the store, and
        give what the first one gave.

        Raises:
            TrainerError: in the others, if the first process fails or is gone.
        """
        return self._team.together(work, self._learn)

    def fit(self, env: Environment) -> Policy:
        """Train until the plan is done; of several processes, the first one alone uses the environment."""
        return self.together(lambda: super(TrlTrainer, self).fit(env))

    def step(self, batch: GroupBatch) -> StepReport:
        """Learn from a batch of groups: `epochs` updates, each over all of it.

        A member that cannot be learned from is left out, with its reason in the report.
        Where nothing can be learned, or a gradient is not finite, the weights stay as
        they are, to the bit. Where there are several processes, each has to make the
        step, and all learn from the batch that the first one has.
        """
        return self._learn(self._team.lesson(None if self._team.follows else self._lesson(batch)))

    def _lesson(self, batch: GroupBatch) -> _Lesson:
        if self.settings.schedule != "constant" and self.settings.total_steps is None:
            raise InvalidInput(f"the schedule {self.settings.schedule} falls over total_steps; give it to the trainer")
        members, skipped = trainable_members(
            batch,
            loss=self.settings.loss,
            max_completion_length=self.settings.max_completion_length,
            vocabulary=self.model.config.vocab_size,
            longest=getattr(self.model.config, "max_position_embeddings", None),
            tokenise=chat_tokeniser(self.tokenizer),
        )
        if any(member.logprobs is None for member in members):
            self._warn_of_recomputed_logprobs()
        state = None
        if self._state_is_news and self._team.size > 1:
            state = {"adapter": peft.get_peft_model_state_dict(self.model), "optimizer": self._optimizer.state_dict()}
        self._state_is_news = False
        return _Lesson(self.steps_done + 1, members, skipped, self._learning_rate(), state)

    def _learn(self, lesson: _Lesson) -> StepReport:
        """This process's part in a step."""
        started = time.perf_counter()
        torch.set_num_threads(self._threads)
        if lesson.state is not None and self._team.follows:
            self._adapter.put(lesson.state["adapter"])
            self._optimizer.load_state_dict(lesson.state["optimizer"])
        members, skipped = lesson.members, lesson.skipped.copy()
        updates: list[Update] = []
        if has_something_to_learn(members, self.settings.kl):
            with self._team.unbroken():
                updates = self._updates(lesson)
            if len(updates) < self.settings.epochs:
                skipped["not_finite"] += len(members)
        elif members:
            skipped["nothing_to_learn"] += len(members)
        self.steps_done = lesson.step
        used = members if updates else []
        return self._report(
            updates,
            used=len(used),
            tokens=sum(len(member.completion_ids) for member in used),
            seconds=time.perf_counter() - started,
            skipped=skipped,
        )

    def _updates(self, lesson: _Lesson) -> list[Update]:
        """Update the weights once an epoch; stop where a gradient is not finite."""
        micro_batches = self._trl.lesson(lesson.members)
        updates: list[Update] = []
        while len(updates) < self.settings.epochs:
            update = self._trl.update(micro_batches, lesson.learning_rate, self.settings.max_grad_norm)
            if not update.made:
                break
            updates.append(update)
        return updates

    def save(self, folder: Path) -> None:
        """Write adapter, optimiser, random states and settings into a folder, as safetensors and JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(folder, self._adapter, self._optimizer, self._state())

    def load(self, folder: Path) -> None:
        """Go on where `save` was called.

        Raises:
            CheckpointError: if the folder is incomplete, or was written under other
                settings or for another model; nothing was changed.
        """
        self.steps_done = load_checkpoint(folder, self._adapter, self._optimizer, self._state())
        self._state_is_news = True

    def _state(self) -> TrainerState:
        return TrainerState(self.steps_done, self.settings.model_dump(), self._fingerprint)

    def _learning_rate(self) -> float:
        factor = rate_factor(
            self.steps_done + 1,
            shape=self.settings.schedule,
            warmup_steps=self.settings.warmup_steps,
            total_steps=self.settings.total_steps,
        )
        return self.settings.learning_rate * factor

    def _report(
        self, updates: list[Update], *, used: int, tokens: int, seconds: float, skipped: Counter[str]
    ) -> StepReport:
        """The means over the updates that were made."""
        if not updates:
            return StepReport(self.steps_done, 0.0, None, 0.0, None, 0.0, tokens, seconds, used, dict(skipped))
        kl, clipped, entropy, passes = (sum(column) for column in zip(*(u.sums for u in updates), strict=True))
        return StepReport(
            step=self.steps_done,
            loss=sum(update.loss for update in updates) / len(updates),
            kl=kl / passes if self.settings.kl else None,
            clip_fraction=clipped / passes,
            entropy=entropy / passes,
            grad_norm=sum(update.grad_norm for update in updates) / len(updates),
            tokens=tokens,
            seconds=seconds,
            used=used,
            skipped=dict(skipped),
        )

    def _warn_of_recomputed_logprobs(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "some members have no log-probabilities of the policy that sampled them (text alone, greedy or "
                "truncated sampling); those of the present weights stand in, as if it had just sampled them",
                stacklevel=3,
            )
