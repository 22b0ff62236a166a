"""The values that pass between the tracer, the store, the trainers and the face.

They hold no behaviour beyond their own shape, and depend on nothing but pydantic, so
that every part of the house can speak of them without knowing another part.
"""

from tracetune.types.completions import Completion, Sampling
from tracetune.types.examples import Evaluation, Example, Score
from tracetune.types.grouping import Grouping
from tracetune.types.groups import Group, GroupBatch, LeftOut, Member
from tracetune.types.policies import Policy, Upstream
from tracetune.types.protocols import (
    Capabilities,
    Checkpoint,
    Collective,
    Environment,
    Journal,
    Plan,
    Trainer,
)
from tracetune.types.reports import Likelihood, StepReport
from tracetune.types.rollouts import Call, Rollout, RolloutSet
from tracetune.types.teachers import Teacher

__all__ = [
    "Call",
    "Capabilities",
    "Checkpoint",
    "Collective",
    "Completion",
    "Environment",
    "Evaluation",
    "Example",
    "Group",
    "GroupBatch",
    "Grouping",
    "Journal",
    "LeftOut",
    "Likelihood",
    "Member",
    "Plan",
    "Policy",
    "Rollout",
    "RolloutSet",
    "Sampling",
    "Score",
    "StepReport",
    "Teacher",
    "Trainer",
    "Upstream",
]
