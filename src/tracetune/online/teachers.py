"""Teachers in a run: where they answer, and which of an example's rollouts are theirs.

Each teacher gets an address of its own on this machine. Inside its rollouts that is what
`tt.policy()` gives, and the names that a program has hard-coded lead to it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Self

from tracetune.errors import NoCompletions
from tracetune.trainers.endpoint.proxy import ProxyEndpoint
from tracetune.types import Example, Journal, Plan, Policy, Rollout, Teacher, Upstream
from tracetune.types.teachers import teacher_of


def whose_rollouts(teachers: Sequence[Teacher], total: int, seed: str) -> list[Teacher | None]:
    """Who makes each of an example's rollouts; None is the policy.

    Args:
        teachers: each has its share.
        total: how many rollouts the example has.
        seed: the same seed gives the same places.

    Example:
        >>> big = Teacher("big", "http://127.0.0.1:8000/v1", "key", "m", share=0.25)
        >>> [teacher and teacher.name for teacher in whose_rollouts([big], 4, "0/1/q1")]
        [None, None, None, 'big']
    """
    makers = [teacher for teacher in teachers for _ in range(teacher.rollouts_of(total))]
    # A trainer may ask for fewer rollouts than the plan has, and one of them is always the policy's.
    makers = makers[: total - 1]
    places: list[Teacher | None] = [*makers, *[None] * (total - len(makers))]
    # Spread over the places, so that a grouping that takes the first members takes some of each.
    random.Random(seed).shuffle(places)  # noqa: S311  an order, not a secret
    return places


class Teachers:
    """The teachers of one run, served while the block lasts.

    Args:
        plan: what the run was asked for.
        journal: gets the tokens of those that return them.
    """

    def __init__(self, plan: Plan, journal: Journal) -> None:
        self._plan = plan
        self._endpoints: dict[str, ProxyEndpoint] = {}
        self._stack = ExitStack()
        for teacher in plan.teachers:
            self._endpoints[teacher.name] = self._endpoint(teacher, journal)

    def __enter__(self) -> Self:
        with ExitStack() as started:
            for endpoint in self._endpoints.values():
                started.enter_context(endpoint)
            self._stack = started.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def policies(self) -> list[Policy]:
        """The teachers as policies, under the names that they have where they answer."""
        return [replace(self._endpoints[teacher.name].policy, model=teacher.model) for teacher in self._plan.teachers]

    def policies_of(self, example: Example, total: int, policy: Policy, *, step: int) -> list[Policy]:
        """Under which policy each rollout of an example is made in a step; the same ones whenever it is asked."""
        makers = whose_rollouts(self._plan.teachers, total, f"{self._plan.seed}/{step}/{example.id}")
        return [policy if maker is None else self._endpoints[maker.name].policy for maker in makers]

    def check(self, rollouts: Sequence[Rollout], step: int) -> None:
        """See that the program asks a teacher in the teacher's rollouts.

        Raises:
            NoCompletions: if it asks somebody else.
        """
        for name, endpoint in self._endpoints.items():
            calls = sum(len(rollout.calls) for rollout in rollouts if teacher_of(rollout.policy_version) == name)
            if calls and not endpoint.requests_received:
                raise NoCompletions(
                    f"the rollouts of teacher {name!r} in step {step} made {calls} calls and none reached it; build "
                    "the client from tt.policy() in each rollout, not once for all"
                )

    def _endpoint(self, teacher: Teacher, journal: Journal) -> ProxyEndpoint:
        names = {*self._plan.models, *self._plan.models.values(), "policy"} - {teacher.name}
        return ProxyEndpoint(
            Upstream(teacher.base_url, teacher.api_key),
            upstream_model=teacher.model,
            name=teacher.name,
            version=teacher.version,
            journal=journal,
            # Of a text alone there is no use in a distribution that is whole: it is sampled as the program asks.
            sampling=self._plan.sampling if teacher.records_tokens else None,
            models=dict.fromkeys(names, teacher.name),
            records_tokens=teacher.records_tokens,
        )
