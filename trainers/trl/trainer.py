"""The trl trainer: a LoRA adapter that learns by one of TRL's trainers, in one process or in several."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from tracetune.errors import InvalidInput
from tracetune.files import make_folder
from tracetune.trainers.base import Endpoint, WeightTrainer
from tracetune.trainers.local.checkpoint import TrainerState, model_fingerprint, read_checkpoint, save_checkpoint
from tracetune.trainers.local.learner import Learner
from tracetune.trainers.local.likelihood import likelihood_of, measured_completions
from tracetune.trainers.local.lora import FIRST, Adapters, derived_seed
from tracetune.trainers.local.members import (
    TrainableMember,
    has_something_to_learn,
    trainable_members,
    unknown_sampler_notice,
)
from tracetune.trainers.local.rows import cut_rows
from tracetune.trainers.local.schedule import rate_factor
from tracetune.trainers.local.sharing import cost_of
from tracetune.trainers.local.tokens import MemberTokeniser
from tracetune.trainers.trl.grpo import GroupRelative
from tracetune.trainers.trl.lessons import ROWS, Lesson, completion_tokens, members_in
from tracetune.trainers.trl.rowwise import rowwise_trainer
from tracetune.trainers.trl.settings import TrlSettings
from tracetune.trainers.trl.stepwise import Update
from tracetune.trainers.trl.team import Team
from tracetune.types import Capabilities, Environment, GroupBatch, Likelihood, Plan, Policy, StepReport

T = TypeVar("T")


# Of one forward that only measures.
_MEASURED_TOKENS = 4096


class TrlTrainer(WeightTrainer):
    """Trains a LoRA adapter through TRL.

    Args:
        model: a Hugging Face id, a checkpoint's folder, a GGUF file, or a model with its
            tokenizer; such a model is changed in place.
        dtype: of the weights of a model that is loaded: "float32", "bfloat16", or "auto" for
            what it was saved as; the adapter's are always float32.
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
        dtype: torch.dtype | str = torch.float32,
        device: str = "auto",
        threads: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if device not in ("auto", "cpu"):
            raise InvalidInput(f"the trl trainer's device is {device!r}; accelerate chooses it: give 'auto', or 'cpu'")
        if device == "auto" and torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
            raise InvalidInput(
                f"this one process sees {torch.cuda.device_count()} GPUs; start it with accelerate launch --multi_gpu, "
                "or show it one of them with CUDA_VISIBLE_DEVICES=0"
            )
        self.settings = TrlSettings.of(settings)
        self._threads = threads or torch.get_num_threads()
        if isinstance(model, tuple):
            base, self.tokenizer = model
        else:
            from tracetune.trainers.models import load_model

            base, self.tokenizer = load_model(model, dtype=dtype, device="cpu")
        self._fingerprint = model_fingerprint(dict(base.named_parameters()))
        self._adapters = Adapters(
            base,
            rank=self.settings.lora_rank,
            alpha=self.settings.lora_alpha,
            dropout=self.settings.lora_dropout,
            seed=self.settings.seed,
        )
        self._learner = Learner(self._adapters, FIRST, self.settings)
        make = GroupRelative if self.settings.method == "grpo" else rowwise_trainer
        self._trl: Any = make(
            self._adapters.model,
            self.tokenizer,
            self._learner.optimizer,
            self.settings,
            use_cpu=device == "cpu" or not torch.accelerator.is_available(),
        )
        self._team = Team()
        self._state_is_news = False
        self._warned = False

    @property
    def model(self) -> Any:
        """The model with its adapter."""
        return self._adapters.model

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

    def likelihood(self, batch: GroupBatch) -> Likelihood:
        """How likely the good and the bad completions of a batch are, by the adapter as it is now."""
        torch.set_num_threads(self._threads)
        members, _ = self._trainable(batch)
        rows = cut_rows(members, cost=cost_of(self.model), budget=_MEASURED_TOKENS, share=False)
        return likelihood_of(measured_completions(self.model, rows, _MEASURED_TOKENS))

    def save(self, folder: Path) -> None:
        """Write adapter, optimiser, random states and settings into a folder, as safetensors and JSON."""
        make_folder(folder)
        save_checkpoint(folder, self._adapters, {None: self._learner}, self._state())

    def load(self, folder: Path) -> None:
        """Go on where `save` was called; of several processes, the first one alone has to.

        Raises:
            CheckpointError: if the folder is incomplete, or was written under other
                settings or for another model; nothing was changed.
        """
        checkpoint = read_checkpoint(folder, self._adapters, self._state())
        checkpoint.restore(self._adapters, {None: self._learner})
        self.steps_done = checkpoint.steps_done
        self._state_is_news = True

    def _lesson(self, batch: GroupBatch) -> Lesson:
        """What there is to learn from a batch."""
        if self.settings.schedule != "constant" and self.settings.total_steps is None:
            raise InvalidInput(f"the schedule {self.settings.schedule} falls over total_steps; give it to the trainer")
        rows, skipped = self._rows(batch)
        state = None
        if self._state_is_news and self._team.size > 1:
            weights = {name: weight.detach().cpu() for name, weight in self._learner.parameters.items()}
            state = {"weights": weights, "optimizer": self._learner.optimizer.state_dict()}
        self._state_is_news = False
        factor = rate_factor(
            self.steps_done + 1,
            shape=self.settings.schedule,
            warmup_steps=self.settings.warmup_steps,
            total_steps=self.settings.total_steps,
        )
        return Lesson(self.steps_done + 1, rows, skipped, self.settings.learning_rate * factor, state)

    def _rows(self, batch: GroupBatch) -> tuple[Sequence[Any], Counter[str]]:
        """Members for GRPO, rows for the others, and what is in none of them, by reason."""
        if self.settings.method != "grpo":
            return ROWS[self.settings.method](batch, self._trainable)
        members, skipped = self._trainable(batch)
        if (notice := unknown_sampler_notice(members)) and not self._warned:
            self._warned = True
            warnings.warn(notice, stacklevel=4)
        if not has_something_to_learn(members, self.settings.kl):
            skipped["nothing_to_learn"] += len(members)
            return [], +skipped
        return members, skipped

    def _trainable(self, batch: GroupBatch) -> tuple[list[TrainableMember], Counter[str]]:
        return trainable_members(
            batch,
            settings=self.settings,
            vocabulary=self.model.config.vocab_size,
            longest=getattr(self.model.config, "max_position_embeddings", None),
            tokeniser=MemberTokeniser(self.tokenizer),
        )

    def _learn(self, lesson: Lesson) -> StepReport:
        """This process's part in a step."""
        started = time.perf_counter()
        torch.set_num_threads(self._threads)
        if lesson.state is not None and self._team.follows:
            with torch.no_grad():
                for name, weight in self._learner.parameters.items():
                    weight.copy_(lesson.state["weights"][name])
            self._learner.optimizer.load_state_dict(lesson.state["optimizer"])
        skipped = lesson.skipped.copy()
        updates: list[Update] = []
        if lesson.rows:
            with self._random_numbers_of_the_step(lesson.step), self._team.unbroken():
                updates = self._updates(lesson)
            if len(updates) < self.settings.epochs:
                skipped["not_finite"] += members_in(lesson.rows)
        self.steps_done = lesson.step
        return self._report(updates, lesson.rows if updates else [], skipped, time.perf_counter() - started)

    def _updates(self, lesson: Lesson) -> list[Update]:
        """Update the weights once an epoch; stop where a gradient is not finite."""
        micro_batches = self._trl.lesson(lesson.rows)
        updates: list[Update] = []
        while len(updates) < self.settings.epochs:
            update = self._trl.update(micro_batches, lesson.learning_rate, self.settings.max_grad_norm)
            if not update.made:
                break
            updates.append(update)
        return updates

    @contextmanager
    def _random_numbers_of_the_step(self, step: int) -> Iterator[None]:
        """Dropout that follows from the seed, the step's number and the process, and disturbs nobody else's numbers."""
        device = self.model.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derived_seed(self.settings.seed, f"{step} {self._team.rank}"))
            yield

    def _state(self) -> TrainerState:
        return TrainerState(self.steps_done, self.settings.model_dump(), self._fingerprint)

    def _report(
        self, updates: Sequence[Update], rows: Sequence[Any], skipped: Counter[str], seconds: float
    ) -> StepReport:
        """The means over the updates that were made."""
        kl = entropy = None
        clip_fraction = 0.0
        if updates and self.settings.method == "grpo":
            kl, clipped, entropy, passes = (sum(column) for column in zip(*(u.sums for u in updates), strict=True))
            kl, clip_fraction, entropy = kl / passes if self.settings.kl else None, clipped / passes, entropy / passes
        made = len(updates) or 1
        return StepReport(
            step=self.steps_done,
            loss=sum(update.loss for update in updates) / made,
            kl=kl,
            clip_fraction=clip_fraction,
            entropy=entropy,
            grad_norm=sum(update.grad_norm for update in updates) / made,
            tokens=completion_tokens(rows),
            seconds=seconds,
            used=members_in(rows),
            skipped=dict(skipped),
        )
