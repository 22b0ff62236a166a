"""KTO rows: completions that are good or bad by themselves, without a partner."""

from __future__ import annotations

from collections import Counter

from tracetune.rows.messages import Rows, completion_of, prompt_of, rows_of, summed_by_sample
from tracetune.types import GroupBatch


def kto_rows(batch: GroupBatch) -> Rows:
    """Rows `{"prompt": …, "completion": …, "label": …}`, as TRL's `KTOTrainer` takes them.

    A completion is good where it did better than its group, bad where it did worse; one
    that was sampled several times counts once, by the sum of its advantages.

    Raises:
        InvalidInput: if a message is no JSON.

    Example:
        >>> kto_rows(batch).rows  # doctest: +SKIP
        [{'prompt': [{'role': 'user', 'content': '2 + 2?'}],
          'completion': [{'role': 'assistant', 'content': '4'}], 'label': True}]

    Reference:
        Kahneman-Tversky optimisation, arXiv 2402.01306.
    """
    skipped: Counter[str] = Counter()
    rows = [
        {"prompt": prompt_of(member), "completion": [completion_of(member)], "label": advantage > 0}
        for member, advantage in summed_by_sample(batch, skipped)
    ]
    return rows_of(rows, skipped)
