"""The local trainer: mmGRPO on a LoRA adapter, in this process, with PyTorch."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tracetune.errors import InvalidInput
from tracetune.files import make_folder
from tracetune.trainers.base import Endpoint, WeightTrainer
from tracetune.trainers.local.checkpoint import TrainerState, model_fingerprint, read_checkpoint, save_checkpoint
from tracetune.trainers.local.export import export_merged
from tracetune.trainers.local.learner import Learner
from tracetune.trainers.local.likelihood import Measured, likelihood_of, measured_completions
from tracetune.trainers.local.lora import FIRST, Adapters, derived_seed
from tracetune.trainers.local.members import (
    TrainableMember,
    has_something_to_learn,
    parts_by_module,
    trainable_members,
    unknown_sampler_notice,
)
from tracetune.trainers.local.report import StepSums
from tracetune.trainers.local.rows import cut_rows
from tracetune.trainers.local.schedule import rate_factor
from tracetune.trainers.local.settings import LocalSettings
from tracetune.trainers.local.sharing import cost_of, prefer_flex_attention, shares_prefixes
from tracetune.trainers.local.tokens import MemberTokeniser
from tracetune.types import Capabilities, Environment, GroupBatch, Likelihood, Plan, StepReport


class LocalTrainer(WeightTrainer):
    """Trains a LoRA adapter on this machine, or one for each module.

    Everything follows from the settings and the batches: the same ones give the same
    weights, bit for bit, on the same machine with the same number of threads.

    Args:
        model: a Hugging Face id, a checkpoint's folder, a GGUF file, or a model with its
            tokenizer; such a model is changed in place.
        dtype: of the weights of a model that is loaded: "float32", "bfloat16", or "auto" for
            what it was saved as; the adapter's are always float32.
        device: where it is loaded to, as PyTorch names it; "auto" takes a GPU where there is one.
        threads: of PyTorch; None keeps as many as it has now.
        settings: what `LocalSettings` has: `learning_rate`, `kl`, `lora_rank` and so on.

    Raises:
        InvalidInput: if a setting is unknown or cannot be used.
        ModelNotFound: if there is no model where `model` says.

    Example:
        >>> trainer = LocalTrainer("HuggingFaceTB/SmolLM2-135M-Instruct", learning_rate=3e-4)  # doctest: +SKIP
        >>> trainer.step(store.groups(Grouping.paper())).grad_norm  # doctest: +SKIP
        0.41

    Reference:
        Multi-module GRPO (arXiv 2508.04660), Eqs. 7 to 9. The paper has a LoRA dropout of
        .05; here it is 0, so that members of a group can share what they have in common.
    """

    name = "local"
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
        self.settings = LocalSettings.of(settings)
        self._threads = threads or torch.get_num_threads()
        with _on_one_thread():
            if isinstance(model, tuple):
                base, self.tokenizer = model
            else:
                from tracetune.trainers.models import load_model

                base, self.tokenizer = load_model(model, dtype=dtype, device=device)
            self._cost = cost_of(base)
            self._fingerprint = model_fingerprint(dict(base.named_parameters()))
            self._share = self.settings.lora_dropout == 0.0 and shares_prefixes(base)
            self._adapters = Adapters(
                base,
                rank=self.settings.lora_rank,
                alpha=self.settings.lora_alpha,
                dropout=self.settings.lora_dropout,
                seed=self.settings.seed,
            )
            if self._share:
                prefer_flex_attention(self._adapters.model)
        # By module; the one of None is of all modules together.
        self._learners: dict[str | None, Learner] = {}
        if not self.settings.adapter_per_module:
            self._learners[None] = Learner(self._adapters, FIRST, self.settings)
        self._warned = False

    @property
    def model(self) -> Any:
        """The model with its adapters."""
        return self._adapters.model

    def prepare(self, plan: Plan) -> None:
        """Let the schedule fall over the plan's steps, unless it was told otherwise."""
        if self.settings.schedule != "constant" and self.settings.total_steps is None:
            self.settings = self.settings.model_copy(update={"total_steps": plan.steps})

    def endpoint(self, env: Environment, version: str) -> Endpoint:
        """A server of the model as it learns, on this machine."""
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
            adapter_of=self._adapter_of if self.settings.adapter_per_module else None,
        )

    def step(self, batch: GroupBatch) -> StepReport:
        """Learn from a batch of groups: `epochs` updates, each over all of it.

        A member that cannot be learned from is left out, with its reason in the report.
        Where nothing can be learned, or a gradient is not finite, the weights stay as
        they are, to the bit.
        """
        started = time.perf_counter()
        if self.settings.schedule != "constant" and self.settings.total_steps is None:
            raise InvalidInput(f"the schedule {self.settings.schedule} falls over total_steps; give it to the trainer")
        torch.set_num_threads(self._threads)
        sums, skipped = StepSums(), Counter[str]()
        used = tokens = 0
        parts: Mapping[Any, GroupBatch] = parts_by_module(batch) if self.settings.adapter_per_module else {None: batch}
        for module, part in parts.items():
            members, reasons = self._trainable(part)
            skipped += reasons
            if not has_something_to_learn(members, self.settings.kl):
                skipped["nothing_to_learn"] += len(members)
                continue
            with self._random_numbers_of(module):
                learned = self._learn(module, members)
            sums.include(learned)
            if learned.updates < self.settings.epochs:
                skipped["not_finite"] += len(members)
            if learned.updates:
                used += len(members)
                tokens += sum(len(member.completion_ids) for member in members)
        self.steps_done += 1
        return sums.report(
            step=self.steps_done,
            used=used,
            tokens=tokens,
            seconds=time.perf_counter() - started,
            skipped=+skipped,
        )

    def likelihood(self, batch: GroupBatch) -> Likelihood:
        """How likely the good and the bad completions of a batch are, by the adapters as they are now."""
        torch.set_num_threads(self._threads)
        found: list[Measured] = []
        parts: Mapping[Any, GroupBatch] = parts_by_module(batch) if self.settings.adapter_per_module else {None: batch}
        for module, part in parts.items():
            members, _ = self._trainable(part)
            rows = cut_rows(members, cost=self._cost, budget=self.settings.token_budget, share=self._share)
            if module in self._learners:
                self._adapters.use(self._learners[module].name)
                found += measured_completions(self.model, rows, self.settings.token_budget)
            else:
                with self._adapters.disabled():
                    found += measured_completions(self.model, rows, self.settings.token_budget)
        return likelihood_of(found)

    def save(self, folder: Path) -> None:
        """Write adapters, optimisers, random states and settings into a folder, as safetensors and JSON."""
        make_folder(folder)
        save_checkpoint(folder, self._adapters, self._learners, self._state())

    def load(self, folder: Path) -> None:
        """Go on where `save` was called: the next step is bit-equal to the one that would have been.

        Raises:
            CheckpointError: if the folder is incomplete, or was written under other
                settings or for another model; nothing was changed.
        """
        checkpoint = read_checkpoint(folder, self._adapters, self._state())
        for module in self._learners.keys() - checkpoint.weights.keys():
            self._adapters.remove(self._learners.pop(module).name)
        checkpoint.restore(self._adapters, {module: self._learner(module) for module in checkpoint.weights})
        self.steps_done = checkpoint.steps_done

    def export(self, folder: Path, *, module: str | None = None) -> None:
        """Write a plain model that needs no adapter, with its tokenizer: `load_model` and others read it.

        Args:
            folder: a new one; it appears when all of it is written.
            module: whose adapter is merged into the weights, where each module has its own.

        Raises:
            InvalidInput: if the folder is not empty, or there is no such adapter.
        """
        if module not in self._learners and not self.settings.adapter_per_module:
            raise InvalidInput(f"all modules share one adapter, and {module!r} has none of its own; export without it")
        if module not in self._learners:
            known = ", ".join(sorted(repr(name) for name in self._learners)) or "none was trained yet"
            raise InvalidInput(f"no adapter of a module {module!r} to export; there are: {known}")
        export_merged(Path(folder), self._adapters, self._learners[module].name, self.tokenizer)

    def _trainable(self, batch: GroupBatch) -> tuple[list[TrainableMember], Counter[str]]:
        members, skipped = trainable_members(
            batch,
            settings=self.settings,
            vocabulary=self.model.config.vocab_size,
            longest=getattr(self.model.config, "max_position_embeddings", None),
            tokeniser=MemberTokeniser(self.tokenizer),
        )
        if (notice := unknown_sampler_notice(members)) and not self._warned:
            self._warned = True
            warnings.warn(notice, stacklevel=3)
        return members, skipped

    def _learn(self, module: str | None, members: Sequence[TrainableMember]) -> StepSums:
        rows = cut_rows(members, cost=self._cost, budget=self.settings.token_budget, share=self._share)
        factor = rate_factor(
            self.steps_done + 1,
            shape=self.settings.schedule,
            warmup_steps=self.settings.warmup_steps,
            total_steps=self.settings.total_steps,
        )
        return self._learner(module).learn(rows, learning_rate=self.settings.learning_rate * factor)

    def _learner(self, module: str | None) -> Learner:
        """The learner of a module, made when the module is first seen."""
        if module not in self._learners:
            name = FIRST if module is None else self._adapters.add(module)
            self._learners[module] = Learner(self._adapters, name, self.settings)
        return self._learners[module]

    def _adapter_of(self, module: str | None) -> str | None:
        """The adapter that a request is answered with; None is the model alone, which a new adapter equals."""
        from tracetune.trainers.endpoint.problems import Problem

        if module is None:
            raise Problem(
                400,
                "the policy has an adapter for each module and the request does not say which module it is of; "
                "make it inside a decorated module, or send the header x-tracetune-module",
                code="module_missing",
            )
        learner = self._learners.get(module)
        return None if learner is None else learner.name

    @contextmanager
    def _random_numbers_of(self, module: str | None) -> Iterator[None]:
        """Dropout that follows from seed, step and module, and disturbs nobody else's numbers."""
        device = self.model.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derived_seed(self.settings.seed, f"{self.steps_done} {module}"))
            yield

    def _state(self) -> TrainerState:
        return TrainerState(self.steps_done, self.settings.model_dump(), self._fingerprint)


@contextmanager
def _on_one_thread() -> Iterator[None]:
    """Compute without torch's pool of threads, which it would keep for the calling thread.

    Steps are made in the endpoint's thread, and two pools on the same cores halve each
    other's speed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
