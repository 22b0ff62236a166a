"""How calls are aligned into groups: the policy as a value; the work is SQL in `tracetune.grouping`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tracetune.types.rollouts import Call, Rollout

Credit = Literal["uniform", "module"] | Callable[[Rollout, Call], float]
GroupColumn = Literal["example_id", "module", "key", "invocation", "turn"]


class Grouping(BaseModel):
    """Which calls are compared with which, and what each is worth.

    The order of work is credit, missing, ragged, select, drop, advantage. Two calls are
    only ever compared within one run, split and step.

    Attributes:
        by: the columns that calls of one group share. Logs with one rollout an example
            are grouped by ("module", "invocation") across the run.
        unit: "call", or "trajectory": a whole rollout is one member (mmGRPO Eq. 9),
            normalised by the rollout's tokens.
        missing: "keep" groups over the rollouts that made the call; "strict" leaves a
            module out for an example when some rollout never called it.
        ragged: modules called a varying number of times: "keep", "truncate" to the
            shortest rollout's count, or "fill" to the longest with the rollout's own calls.
        fill: which of its own calls a short rollout is filled with: "random" (with
            replacement) or "last".
        size: members of a group; None keeps them all.
        select: which members are kept when there are more than `size`: "diverse" spreads
            them over the rewards, "first", or "random".
        repeat: a group smaller than `size` is repeated in order up to it.
        advantage: "grpo" (r - mean) / (std + eps), "centered" (r - mean), "rloo"
            (against the mean of the others), "batch" (normalised over the batch).
        eps: added to the standard deviation, which is the sample's (ddof 1).
        credit: whose reward a call earns: "uniform", the rollout's; "module", its
            module's own score mixed in by `module_weight`; or a function (rollout, call).
        module_weight: the share of a module's own score under credit "module"; a number,
            or one for each module.
        failure_reward: what every call of a crashed or timed-out rollout earns.
        format_reward: what every call of a rollout earns that could not be parsed.
        format_errors: names of further exception types that count as `FormatError`.
        drop_constant: groups whose rewards are all equal are left out, and counted.
        modules: the modules to train; None trains all.
        seed: of the random picks, which are stable hashes and never depend on row order.

    Example:
        >>> Grouping.paper().size
        12

    Reference:
        Multi-module GRPO, arXiv 2508.04660, section 3 and Algorithm 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: tuple[GroupColumn, ...] = ("example_id", "module", "key", "invocation", "turn")
    unit: Literal["call", "trajectory"] = "call"
    missing: Literal["keep", "strict"] = "keep"
    ragged: Literal["keep", "truncate", "fill"] = "keep"
    fill: Literal["random", "last"] = "random"
    size: int | None = Field(default=None, ge=1)
    select: Literal["diverse", "first", "random"] = "diverse"
    repeat: bool = False
    advantage: Literal["grpo", "centered", "rloo", "batch"] = "grpo"
    eps: float = Field(default=1e-4, ge=0.0, allow_inf_nan=False)
    credit: Any = "uniform"
    module_weight: float | Mapping[str, float] = 1.0
    failure_reward: float = Field(default=0.0, allow_inf_nan=False)
    format_reward: float = Field(default=-1.0, allow_inf_nan=False)
    format_errors: tuple[str, ...] = ()
    drop_constant: bool = True
    modules: tuple[str, ...] | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.by:
            raise ValueError("by must name at least one column")
        if len(set(self.by)) != len(self.by):
            raise ValueError(f"by names a column twice: {self.by}")
        if not (callable(self.credit) or self.credit in ("uniform", "module")):
            raise ValueError(f'credit must be "uniform", "module" or a function (rollout, call), not {self.credit!r}')
        if self.repeat and self.size is None:
            raise ValueError("repeat needs a size to repeat up to")
        return self

    @classmethod
    def paper(cls) -> Grouping:
        """The paper's: fill with the rollout's own calls, 12 diverse members, format errors at -1."""
        return cls(missing="keep", ragged="fill", fill="random", size=12, select="diverse", format_reward=-1.0)

    @classmethod
    def dspy(cls, size: int = 12) -> Grouping:
        """DSPy's: a module that some rollout missed is left out, ragged ones are truncated, groups repeated to size."""
        return cls(missing="strict", ragged="truncate", size=size, repeat=True)
