"""Rows out of groups: what fine-tuning services and other libraries learn from.

They are pure functions of a batch. A prompt is exactly what was sent, demos included,
and a completion is the assistant's message after it; equal batches give equal rows in
equal order, and every member that is in no row is counted with its reason.
"""

from __future__ import annotations

from tracetune.rows.datasets import write_dataset
from tracetune.rows.kto import kto_rows
from tracetune.rows.messages import Rows
from tracetune.rows.preferences import preference_rows
from tracetune.rows.supervised import supervised_rows
from tracetune.rows.tables import group_table, write_group_table

__all__ = [
    "Rows",
    "group_table",
    "kto_rows",
    "preference_rows",
    "supervised_rows",
    "write_dataset",
    "write_group_table",
]
