"""Any rollouts and any grouping, for what must hold of all of them."""

from __future__ import annotations

from grouping_tables import Rows
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tracetune.types import Grouping

some = settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])

REWARDS = st.one_of(st.none(), st.sampled_from([0.0, 0.1, 0.3, 1.0]), st.floats(-5, 5))
STATUSES = st.sampled_from(["ok"] * 6 + ["error", "format_error", "timeout", "interrupted", None])


@st.composite
def rows(draw) -> Rows:
    """A few rollouts of a few examples: ragged, failed, unscored, with calls of every kind."""
    made = Rows()
    for place in range(draw(st.integers(0, 7))):
        calls = {module: [f"{place}{module}{i}" for i in range(draw(st.integers(0, 3)))] for module in ("act", "plan")}
        made.rollout(
            f"r{place}", draw(REWARDS), calls,
            example_id=draw(st.sampled_from(["q1", "q2"])), status=draw(STATUSES),
            step=draw(st.sampled_from([1, 1, None])), superseded=draw(st.integers(0, 9)) == 0,
        )  # fmt: skip
    for call in made.calls:
        flags = st.sampled_from([{}] * 8 + [{"late": True}, {"cached": True}, {"kind": "score"}, {"completion": None}])
        call.update(draw(flags), key=draw(st.sampled_from(["", "", "left"])), turn=draw(st.sampled_from([0, 0, 1])))
    return made


groupings = st.builds(
    Grouping,
    by=st.sampled_from(
        [("example_id", "module", "key", "invocation", "turn"), ("module", "invocation"), ("example_id", "module")]
    ),
    unit=st.sampled_from(["call", "call", "trajectory"]),
    missing=st.sampled_from(["keep", "strict"]),
    ragged=st.sampled_from(["keep", "truncate", "fill"]),
    fill=st.sampled_from(["random", "last"]),
    size=st.sampled_from([None, 1, 2, 3]),
    select=st.sampled_from(["diverse", "first", "random"]),
    advantage=st.sampled_from(["grpo", "centered", "rloo", "batch"]),
    drop_constant=st.booleans(),
    modules=st.sampled_from([None, ("act",)]),
    seed=st.integers(0, 3),
)
