"""The demo's task: who do the relations of a question lead to, given seven facts?

A fact `ann friend bob` says that ann's friend is bob; a question `ann friend boss` asks
for the boss of ann's friend. Facts are made up anew for every example, so an answer can
only come from reading them. A question belongs to exactly one split, by a hash of its
text: what a policy was evaluated on, it has neither been pre-trained nor trained on.
"""

from __future__ import annotations

import hashlib
import random
from typing import Literal

from tracetune.errors import InvalidInput
from tracetune.types import Example, Rollout

Split = Literal["pretrain", "train", "val"]

RELATIONS = tuple(
    "friend boss aunt uncle teacher doctor cousin mentor rival tailor guide partner".split()  # noqa: SIM905 - readable
)

NAMES = tuple(
    """
    abe ada alf amy ann ari ava axel bea ben bess bill bob bram cal cara cato chad clara cleo cody cora curt dag
    dale dan dean dina dora drew earl eden edna elsa emil emma eric esme eva ezra fay finn flo ford fran fred gail
    gene gina glen greta gus hal hana hank hedy hope hugo ida igor ina ira iris ivan jack jane jean jill joan jon
    joy june kai kara kate kent kim kira kurt lana lars lea leo lily liam lou lucy luke mae mara mark max mia milo
    mona nan ned nell nick nina noah nora olga omar otto owen pam paul penny pia rhea rita rob ron rosa ruth sam
    sara saul theo
    """.split()  # noqa: SIM905 - a list of 120 quoted words is a page long
)

FACTS_PER_EXAMPLE = 7

# Longer questions are more common: short ones are soon answered.
HOP_WEIGHTS = {1: 1, 2: 2, 3: 2}

# Of ten buckets of questions. Pre-training sees most of them and evaluation has its own two.
_BUCKETS: dict[Split, range] = {"pretrain": range(6), "train": range(6, 8), "val": range(8, 10)}


def examples(split: Split, n: int, seed: int = 0) -> list[Example]:
    """Examples of one split, the same ones for the same seed.

    Args:
        split: "pretrain", "train" or "val".
        n: how many; no question comes twice.
        seed: of the questions and of the facts.

    Returns:
        Examples with inputs `facts` and `question`, and labels `answer`, the right name,
        and `hops`, the number of relations in the question.

    Raises:
        InvalidInput: if there is no such split.

    Example:
        >>> example = examples("val", 1)[0]
        >>> sorted(example.inputs), sorted(example.labels)
        (['facts', 'question'], ['answer', 'hops'])
    """
    if split not in _BUCKETS:
        raise InvalidInput(f"the demo's task has no split {split!r}; its splits are {', '.join(_BUCKETS)}")
    # Text seeds a generator the same way on every machine and in every process.
    generator = random.Random(f"{split}/{seed}")  # noqa: S311 - nothing here is secret
    made: dict[str, Example] = {}
    while len(made) < n:
        example = _example(generator)
        question = example.inputs["question"]
        if split_of(question) == split:
            made.setdefault(question, example)
    return list(made.values())


def split_of(question: str) -> Split:
    """The split that a question belongs to, whatever the facts."""
    bucket = int(hashlib.sha256(question.encode()).hexdigest(), 16) % 10
    return next(split for split, buckets in _BUCKETS.items() if bucket in buckets)


def reward(example: Example, output: str, rollout: Rollout) -> float:
    """0.1 for an answer in the right form and 0.9 for the right one, less 0.1 for each surplus hop.

    An answer in the wrong form never comes here: its rollout ends as a format error.
    Surplus hops must cost something, or a policy learns never to stop.
    """
    hops = sum(call.module == "hop" for call in rollout.calls)
    surplus: int = max(0, hops - example.labels["hops"])
    return 0.1 + 0.9 * float(output == example.labels["answer"]) - 0.1 * surplus


def _example(generator: random.Random) -> Example:
    hops = generator.choices(list(HOP_WEIGHTS), weights=list(HOP_WEIGHTS.values()))[0]
    trail = generator.sample(NAMES, hops + 1)
    relations = generator.choices(RELATIONS, k=hops)
    facts = dict(zip(zip(relations, trail, strict=False), trail[1:], strict=True))
    while len(facts) < FACTS_PER_EXAMPLE:
        # Half of the other facts are about people of the trail, so that both words of a look-up matter.
        subject = generator.choice(trail if generator.random() < 0.5 else NAMES)
        person = generator.choice(trail if generator.random() < 0.25 else NAMES)
        if person != subject:
            facts.setdefault((generator.choice(RELATIONS), subject), person)
    lines = [f"{subject} {relation} {person}" for (relation, subject), person in facts.items()]
    generator.shuffle(lines)
    question = " ".join([trail[0], *relations])
    return Example(
        id=hashlib.sha256(f"{question}\n{lines}".encode()).hexdigest()[:16],
        inputs={"facts": "\n".join(lines), "question": question},
        labels={"answer": trail[-1], "hops": hops},
    )
