"""What a policy endpoint knows of a completion that nobody else does: its exact tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field


class Sampling(BaseModel):
    """How the tokens of a completion are drawn.

    None means that the program's own value stands. `constrained` says that a grammar ruled
    tokens out, because the program asked for JSON of a certain schema.

    Example:
        >>> Sampling(temperature=1.0).on_policy
        True
        >>> Sampling(temperature=0.0).on_policy
        False
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float | None = Field(default=None, ge=0.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    constrained: bool = False

    @property
    def on_policy(self) -> bool:
        """Whether the recorded log-probabilities are those of the policy's own distribution.

        Greedy decoding and truncated distributions (top_p below 1, any top_k) are not, nor
        are those that a grammar cut (`constrained`): a trainer that computes them again,
        without the grammar, would take the difference for a change of the policy.
        """
        whole = self.top_p in (None, 1.0) and self.top_k is None and not self.constrained
        return whole and self.temperature != 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """One choice of one response, recorded by the side that sampled it.

    Attributes:
        response_id: the response's id, as the client received it.
        choice: 0-based index among the response's choices.
        model: the model's name, as the client asked for it.
        policy_version: the version of the weights that sampled it.
        prompt_token_ids: the exact prompt, special tokens included.
        completion_token_ids: every sampled token, the end token or the one that
            completed a stop string included.
        completion_logprobs: natural logarithms, one for each completion token, of the
            distribution that was sampled from (temperature applied); None where they are not
            known, or are those of a distribution that was bent or cut otherwise than `sampling` says.
        text: what the client received.
        finish_reason: "stop", "length" or "cancelled".
        sampling: what was in force, with every default filled in.
        call_id: the `x-tracetune-call` header of the request, where it carried one.
        module: the `x-tracetune-module` header, likewise.
        started_at: nanoseconds since the epoch.
        ended_at: nanoseconds since the epoch.
    """

    response_id: str
    choice: int
    model: str
    policy_version: str
    prompt_token_ids: Sequence[int]
    completion_token_ids: Sequence[int]
    completion_logprobs: Sequence[float] | None
    text: str
    finish_reason: str
    sampling: Sampling = field(default_factory=Sampling)
    call_id: str | None = None
    module: str | None = None
    started_at: int = 0
    ended_at: int = 0
