"""The helper process of an isolated query: a program that answers one question and ends."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from tracetune.errors import QueryError, TracetuneError
from tracetune.grouping.connections import bytes_of, connected
from tracetune.grouping.queries.isolation import GRACE_SECONDS, REFUSED
from tracetune.grouping.queries.limits import QueryLimits, limited_answer
from tracetune.grouping.queries.read_only import check_query
from tracetune.grouping.queries.refusals import reason_of

# Beside DuckDB's own limit: Python, Arrow and the answer.
_MORE_MEMORY = 1024**3


def _main() -> int:
    """Answer the question on standard input; what Python and DuckDB print goes to standard error."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    first, _, packed = sys.stdin.buffer.read().partition(b"\n")
    question = json.loads(first)
    _bound(resource.RLIMIT_DATA, bytes_of(question["memory_limit"]) + _MORE_MEMORY)
    _bound(resource.RLIMIT_CORE, 0)
    try:
        table = _answer(question, _unpacked(packed))
    except TracetuneError as error:
        out.write(json.dumps({"error": type(error).__name__, "message": str(error)}).encode())
        out.close()
        return REFUSED
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    out.close()
    return 0


def _answer(question: dict[str, Any], params: Sequence[Any] | Mapping[str, Any] | None) -> pa.Table:
    limits = QueryLimits(**question["limits"])
    with connected(
        Path(question["path"]),
        read_only=True,
        closed_off=True,
        wait=question["wait"],
        memory_limit=question["memory_limit"],
        temporary_folder=Path(question["folder"]),
    ) as connection:
        # Ends the process from a thread that does not need Python, which a query can keep busy.
        faulthandler.dump_traceback_later(limits.seconds + GRACE_SECONDS, exit=True, file=sys.stderr)
        try:
            check_query(connection, question["query"], checks_definitions=True)
            return limited_answer(connection, question["query"], params, limits)
        except (duckdb.Error, MemoryError, pa.ArrowException) as error:
            raise QueryError(reason_of(error)) from error
        finally:
            faulthandler.cancel_dump_traceback_later()


def _bound(kind: int, most: int) -> None:
    """Lower a limit of this process, as far as it is not lower already."""
    _, hard = resource.getrlimit(kind)
    bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (bound, bound))


def _unpacked(packed: bytes) -> Sequence[Any] | Mapping[str, Any] | None:
    if not packed:
        return None
    table = pa.ipc.open_stream(packed).read_all()
    row = {name: table.column(name)[0].as_py() for name in table.column_names}
    return row if (table.schema.metadata or {}).get(b"named") == b"True" else list(row.values())


if __name__ == "__main__":
    sys.exit(_main())
