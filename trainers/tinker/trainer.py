"""The trainer at a Tinker service: what is learned is decided here, the gradients are computed there."""

from __future__ import annotations

import json
import secrets
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tracetune.errors import CheckpointError, InvalidInput, TrainerError
from tracetune.files import make_folder, write_text
from tracetune.trainers.base import Endpoint, WeightTrainer
from tracetune.trainers.local.members import TrainableMember, has_something_to_learn, trainable_members
from tracetune.trainers.local.schedule import rate_factor
from tracetune.trainers.local.tokens import MemberTokeniser
from tracetune.trainers.tinker.engine import TinkerEngine
from tracetune.trainers.tinker.lessons import Anchor, lessons_of, needs_base_logprobs, needs_present_logprobs
from tracetune.trainers.tinker.report import report_of
from tracetune.trainers.tinker.service import ServiceFactory, TrainingRun, tinker_service
from tracetune.trainers.tinker.settings import TinkerSettings
from tracetune.types import Capabilities, Environment, GroupBatch, Plan, StepReport

_STATE = "trainer.json"


class TinkerTrainer(WeightTrainer):
    """Trains a LoRA adapter at Thinking Machines' Tinker, or at a service shaped like it.

    Nothing is asked of the service until the first step, checkpoint or endpoint needs it.
    `fit` and `tt.train` end the session when they are done; whoever calls `step` alone
    closes the trainer, or writes `with trainer:` around the steps.

    Args:
        model: the base model, as the service calls it.
        service: makes the client, an object with the methods of `tinker.ServiceClient`;
            by default a `tinker.ServiceClient` of the address and key that follow.
        base_url: the service's address; None takes `TINKER_BASE_URL`, or Thinking Machines'.
        api_key: None takes `TINKER_API_KEY`.
        tokenizer: of the base model; None takes the one that the service names.
        timeout: seconds to wait for any one answer of the service.
        settings: what `TinkerSettings` has: `loss`, `learning_rate`, `kl` and so on.

    Raises:
        InvalidInput: if a setting is unknown or cannot be used.

    Example:
        >>> trainer = TinkerTrainer("Qwen/Qwen3-8B", loss="ppo", learning_rate=4e-5)
        >>> trainer.step(store.groups(Grouping.paper())).grad_norm  # doctest: +SKIP
        0.41

    Reference:
        Multi-module GRPO (arXiv 2508.04660), Eqs. 7 to 9; the KL penalty is another one
        than the paper's, see `tracetune.trainers.tinker.lessons`.
    """

    name = "tinker"
    capabilities = Capabilities(weights=True)

    def __init__(
        self,
        model: str,
        *,
        service: ServiceFactory | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        tokenizer: Any = None,
        timeout: float = 3600.0,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.settings = TinkerSettings.of(settings)
        self.model = str(model)
        self._factory = service or tinker_service(base_url, api_key)
        self._timeout = timeout
        self._own_tokenizer = tokenizer
        self._training_run: TrainingRun | None = None
        self._engine: TinkerEngine | None = None
        self._is_halfway = False
        self._is_closed = False
        self._warned = False

    @property
    def tokenizer(self) -> Any:
        """The base model's tokenizer."""
        if self._own_tokenizer is None:
            self._own_tokenizer = self._run().tokenizer()
        return self._own_tokenizer

    def prepare(self, plan: Plan) -> None:
        """Let the schedule fall over the plan's steps, and refuse sampling that cannot be learned from.

        Raises:
            InvalidInput: if the plan samples at another temperature than 1: the service's
                losses are those of the distribution at 1.
        """
        if plan.sampling.temperature not in (None, 1.0):
            raise InvalidInput(
                f"the tinker trainer learns at temperature 1, and the plan samples at {plan.sampling.temperature:g}; "
                "leave sampling as it is, or train locally"
            )
        if self.settings.schedule != "constant" and self.settings.total_steps is None:
            self.settings = self.settings.model_copy(update={"total_steps": plan.steps})

    def endpoint(self, env: Environment, version: str) -> Endpoint:
        """An address on this machine that samples at the service."""
        from tracetune.trainers.endpoint.facade import Facade
        from tracetune.trainers.endpoint.prompts import Prompts

        self._engine = TinkerEngine(self._run().sampler(), self.tokenizer, version=version, journal=env.journal)
        prompts = Prompts(self.tokenizer, context=self.settings.context_length, vocabulary=len(self.tokenizer))
        return Facade(self._engine, prompts, name="policy", models=env.plan.models, forward=env.plan.upstream)

    def close(self) -> None:
        """Stop serving the policy, and end the session at the service; saved states stay there.

        A trainer that has learned does nothing more afterwards until a checkpoint is loaded.
        """
        super().close()
        self._engine = None
        if self._training_run is not None:
            self._training_run.close("errored" if self._is_halfway else "success")
            self._training_run = None
            self._is_closed = self.steps_done > 0 or self._is_halfway

    def step(self, batch: GroupBatch) -> StepReport:
        """Learn from a batch of groups: one update over all of it.

        A member that cannot be learned from is left out, with its reason in the report.
        Where nothing can be learned, the weights stay as they are.

        Raises:
            TrainerError: if the service fails, says nothing for `timeout`, or gives numbers
                that are not finite. Its weights may have changed then, so the trainer does
                nothing more until a checkpoint is loaded.
        """
        started = time.perf_counter()
        if self.settings.schedule != "constant" and self.settings.total_steps is None:
            raise InvalidInput(f"the schedule {self.settings.schedule} falls over total_steps; give it to the trainer")
        self._check_whole()
        members, skipped = trainable_members(
            batch,
            settings=self.settings.of_members,
            vocabulary=len(self.tokenizer),
            longest=self.settings.context_length,
            tokeniser=MemberTokeniser(self.tokenizer),
        )
        if has_something_to_learn(members, self.settings.kl):
            report = self._learn(members, skipped, started)
        else:
            if members:
                skipped["nothing_to_learn"] += len(members)
            seconds = time.perf_counter() - started
            report = StepReport(self.steps_done + 1, 0.0, None, 0.0, None, 0.0, 0, seconds, 0, dict(skipped))
        self.steps_done += 1
        return report

    def save(self, folder: Path) -> None:
        """Have the service keep its state, and write where it is, with the settings, into a folder.

        Raises:
            TrainerError: if the service cannot, or the last step ended halfway.
        """
        self._check_whole()
        make_folder(folder)
        # Names are taken once at some services, and a step may be saved twice.
        name = f"step-{self.steps_done:06d}-{secrets.token_hex(4)}"
        state = self._run().save(name, self.settings.state_ttl_seconds)
        record = {
            "steps_done": self.steps_done,
            "settings": self.settings.model_dump(),
            "model": self.model,
            "state": state,
        }
        write_text(folder / _STATE, json.dumps(record, indent=2))

    def load(self, folder: Path) -> None:
        """Go on where `save` was called, from the state that the service has kept.

        Raises:
            CheckpointError: if the folder is incomplete, was written under other settings or
                for another model, or the service has the state no more; nothing was changed.
        """
        try:
            record = json.loads((folder / _STATE).read_text())
            steps_done, settings, model, state = (record[name] for name in ("steps_done", "settings", "model", "state"))
            names = sorted(settings.keys() | self.settings.model_dump().keys())
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{folder} is no whole checkpoint of a tinker trainer ({error}); use another"
            ) from error
        if model != self.model:
            raise CheckpointError(
                f"{folder} was written for {model!r}, not {self.model!r}; name the model it began with"
            )
        for name in names:
            old, new = settings.get(name), self.settings.model_dump().get(name)
            if old != new:
                raise CheckpointError(
                    f"{folder} was written with {name}={old}, not {new}; give the trainer its setting"
                )
        resumed: TrainingRun | None = None
        try:
            resumed = TrainingRun.resumed(self._factory, state, timeout=self._timeout)
            sampler = None if self._engine is None else resumed.sampler()
        except TrainerError as error:
            if resumed is not None:
                resumed.close("errored")
            raise CheckpointError(f"{state}, which {folder} leads to, could not be loaded: {error}") from error
        if self._engine is not None and sampler is not None:
            self._engine.sampler = sampler
        if self._training_run is not None:
            self._training_run.close()
        self._training_run, self.steps_done, self._is_halfway, self._is_closed = resumed, steps_done, False, False

    def _learn(self, members: Sequence[TrainableMember], skipped: Counter[str], started: float) -> StepReport:
        run, settings = self._run(), self.settings
        anchors = self._anchors(run, members)
        lessons = lessons_of(members, anchors, settings)
        self._is_halfway = True
        learned = run.learn(
            lessons,
            loss=settings.loss,
            thresholds=settings.thresholds,
            learning_rate=settings.learning_rate * self._rate_factor(),
            max_grad_norm=settings.max_grad_norm,
        )
        if not np.isfinite(np.concatenate([*learned.logprobs, [learned.grad_norm]])).all():
            raise TrainerError(
                f"the tinker service computed numbers in step {self.steps_done + 1} that are not finite; resume from "
                "the last checkpoint, with a lower learning rate perhaps"
            )
        if self._engine is not None:
            self._engine.sampler = run.sampler()
        self._is_halfway = False
        return report_of(
            lessons,
            learned,
            anchors,
            loss=settings.loss,
            thresholds=settings.thresholds,
            step=self.steps_done + 1,
            seconds=time.perf_counter() - started,
            skipped=skipped,
        )

    def _anchors(self, run: TrainingRun, members: Sequence[TrainableMember]) -> list[Anchor]:
        """What each member's tokens are held against, asked of the service where it was not recorded."""
        unknown = [member for member in members if needs_present_logprobs(member)]
        self._warn_of_stand_ins(unknown)
        present = iter(run.present_logprobs([_tokens(member) for member in unknown]) if unknown else [])
        unmoved = [member for member in members if needs_base_logprobs(member, self.settings)]
        bases = iter(run.base_logprobs(self.model, [_tokens(member) for member in unmoved]) if unmoved else [])
        anchors = []
        for member in members:
            old = next(present) if needs_present_logprobs(member) else np.array(member.logprobs)
            base = next(bases) if needs_base_logprobs(member, self.settings) else None
            recorded = base if member.logprobs is None else np.array(member.logprobs)
            anchors.append(
                Anchor(old, recorded if member.is_corrected else None, base if self.settings.kl != 0.0 else None)
            )
        return anchors

    def _rate_factor(self) -> float:
        return rate_factor(
            self.steps_done + 1,
            shape=self.settings.schedule,
            warmup_steps=self.settings.warmup_steps,
            total_steps=self.settings.total_steps,
        )

    def _run(self) -> TrainingRun:
        if self._training_run is None:
            self._training_run = TrainingRun.new(
                self._factory,
                self.model,
                rank=self.settings.lora_rank,
                seed=self.settings.seed,
                timeout=self._timeout,
            )
        return self._training_run

    def _check_whole(self) -> None:
        if self._is_closed:
            raise TrainerError(
                f"this tinker trainer was closed after {self.steps_done} steps, and its session at the service has "
                "ended; load its last checkpoint, or make a new trainer"
            )
        if self._is_halfway:
            raise TrainerError(
                f"step {self.steps_done + 1} ended halfway, and the service's weights may have changed; load the last "
                "checkpoint, or make a new trainer"
            )

    def _warn_of_stand_ins(self, members: Sequence[TrainableMember]) -> None:
        # A teacher's that are imitated are compared with nobody, and what is corrected has its own to be held against.
        missing = [
            member for member in members if not member.is_imitated and not (member.is_corrected and member.logprobs)
        ]
        if missing and not self._warned:
            self._warned = True
            stand_in = "the base model" if missing[0].is_corrected else "the present weights"
            warnings.warn(
                "some members have no log-probabilities of the policy at temperature 1 (text alone, or greedy, "
                f"truncated or rescaled sampling); those of {stand_in} stand in",
                stacklevel=5,
            )


def _tokens(member: TrainableMember) -> tuple[Sequence[int], Sequence[int]]:
    return member.prompt_ids, member.completion_ids
