"""A folder that Hugging Face's `datasets` reads: rows of each kind, and the groups they are of.

It is Parquet and a README that says which file is what, so it outlives any version of
that library, can be pushed to a hub as it is, and is read without the library as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tracetune.errors import InvalidInput
from tracetune.files import make_file, make_folder, write_text
from tracetune.rows.kto import kto_rows
from tracetune.rows.messages import Rows
from tracetune.rows.preferences import preference_rows
from tracetune.rows.supervised import supervised_rows
from tracetune.rows.tables import write_group_table
from tracetune.types import GroupBatch


def write_dataset(
    batch: GroupBatch, folder: Path, *, threshold: float | None = None, margin: float = 0.0
) -> dict[str, Rows]:
    """Write a batch as a new folder with the configurations sft, dpo, kto and groups.

    Rows are in TRL's forms. A kind of which there are no rows has no file.

    Args:
        batch: the groups.
        folder: where there is nothing yet.
        threshold: of the advantage of what is imitated; None takes the best of each group.
        margin: by how much the rewards of a pair differ, at least.

    Returns:
        The rows of each kind, with what was left out of them.

    Raises:
        InvalidInput: if the folder is there already, or a column would mix shapes.

    Example:
        >>> write_dataset(batch, Path("rows"))["sft"].skipped  # doctest: +SKIP
        {'not_best': 12}
        >>> datasets.load_dataset("rows", "dpo")["train"]  # doctest: +SKIP
    """
    if folder.exists():
        raise InvalidInput(f"{folder} is there already; name a folder that is not")
    kinds = {
        "sft": supervised_rows(batch, select="best" if threshold is None else "above", threshold=threshold or 0.0),
        "dpo": preference_rows(batch, margin=margin, form="trl"),
        "kto": kto_rows(batch),
    }
    tables = {kind: _table(kind, rows.rows) for kind, rows in kinds.items() if rows.rows}
    make_folder(folder)
    for kind, table in tables.items():
        make_file(folder / f"{kind}.parquet")
        pa.parquet.write_table(table, folder / f"{kind}.parquet", compression="zstd")
    write_group_table(batch, folder / "groups.parquet")
    write_text(folder / "README.md", _card([*tables, "groups"], kinds))
    return kinds


def _table(kind: str, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    try:
        return pa.Table.from_pylist([dict(row) for row in rows])
    except pa.ArrowInvalid as error:
        raise InvalidInput(
            f"the messages of {kind} rows mix shapes, texts and lists of parts say, which no column holds ({error}); "
            "export them as JSON lines instead"
        ) from error


def _card(names: Sequence[str], kinds: Mapping[str, Rows]) -> str:
    lines = ["---", "configs:"]
    for name in names:
        lines += [f"- config_name: {name}", f"  data_files: {name}.parquet"]
    lines += ["---", "", "# Rows of a tracetune store", ""]
    lines += [f"- {kind}: {len(rows)} rows" for kind, rows in kinds.items()]
    lines += ["- groups: every member of every group, with its tokens", ""]
    return "\n".join(lines)
