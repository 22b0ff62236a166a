"""Rows out of a store: what `export --format` writes, and what it says was left out."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracetune.commands.app import say
from tracetune.errors import InvalidInput
from tracetune.files import written_whole
from tracetune.rows import Rows, kto_rows, preference_rows, supervised_rows, write_dataset, write_group_table
from tracetune.tracer import store_path
from tracetune.types import Grouping

if TYPE_CHECKING:
    from tracetune.grouping import Store
    from tracetune.types import GroupBatch

_OPTIONS = {
    "sft": ("above",),
    "dpo": ("margin",),
    "kto": (),
    "parquet": (),
    "hf": ("above", "margin"),
}


@dataclass(frozen=True, slots=True)
class RowSettings:
    """Which rows, and where to; options that are None have their usual values.

    Raises:
        InvalidInput: if there is no such format, or it has no such option, or needs a path.
    """

    row_format: str
    output: Path | None
    above: float | None
    margin: float | None

    def __post_init__(self) -> None:
        if self.row_format not in _OPTIONS:
            raise InvalidInput(f"--format {self.row_format} is not known; there are {', '.join(_OPTIONS)}")
        for option in ("above", "margin"):
            if getattr(self, option) is not None and option not in _OPTIONS[self.row_format]:
                raise InvalidInput(f"--{option} means nothing to --format {self.row_format}; leave it out")
        if self.row_format in ("parquet", "hf") and self.output is None:
            raise InvalidInput(f"--format {self.row_format} is no text; say where to with -o PATH")


def export_rows(store: Store, settings: RowSettings, where: str | None) -> None:
    """Write the rows of a store's groups.

    Raises:
        InvalidInput: if they cannot be written there.
        QueryError: if the condition is not one.
    """
    if settings.output is not None and store_path(settings.output) == store.path:
        raise InvalidInput(f"{settings.output} is the store itself; name another path")
    batch = store.groups(Grouping(), where)
    try:
        _write(batch, settings)
    except OSError as error:
        raise InvalidInput(f"{settings.output} cannot be written ({error}); name another path") from error
    _say_counts("left out of the groups", Counter(f"{item.kind}s {item.reason}" for item in batch.left_out))


def _write(batch: GroupBatch, settings: RowSettings) -> None:
    of_batch = f"of {batch.n_members} calls in {len(batch)} groups"
    match settings.row_format:
        case "parquet":
            assert settings.output is not None
            with written_whole(settings.output) as unfinished:
                write_group_table(batch, unfinished)
            say(f"{batch.n_members} rows {of_batch}")
        case "hf":
            assert settings.output is not None
            kinds = write_dataset(batch, settings.output, threshold=settings.above, margin=settings.margin or 0.0)
            for kind, rows in kinds.items():
                say(f"{kind}: {len(rows)} rows {of_batch}")
                _say_counts(f"left out of {kind}", rows.skipped)
        case _:
            rows = _rows(batch, settings)
            if settings.output is None:
                _print(rows)
            else:
                with written_whole(settings.output) as unfinished:
                    unfinished.write_text(rows.jsonl(), encoding="utf-8")
            say(f"{len(rows)} rows {of_batch}")
            _say_counts("left out of the rows", rows.skipped)


def _rows(batch: GroupBatch, settings: RowSettings) -> Rows:
    if settings.row_format == "dpo":
        return preference_rows(batch, margin=settings.margin or 0.0)
    if settings.row_format == "kto":
        return kto_rows(batch)
    if settings.above is None:
        return supervised_rows(batch)
    return supervised_rows(batch, select="above", threshold=settings.above)


def _print(rows: Rows) -> None:
    # The bytes of the rows, whatever encoding the terminal has: others read them.
    sys.stdout.flush()
    sys.stdout.buffer.write(rows.jsonl().encode())
    sys.stdout.buffer.flush()


def _say_counts(what: str, counts: Mapping[str, int]) -> None:
    if counts:
        say(f"{what}: " + ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())))
