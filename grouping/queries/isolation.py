"""A query in a process of its own: whatever the query does to DuckDB, the asking process goes on.

The helper process runs `query_process`. It gets the question as one JSON document and the
parameters as Arrow on its standard input, and gives the answer as an Arrow stream. It has
no environment variables but those that Python needs, a bound on its memory, and a folder
of its own for what DuckDB works on disk with.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa

from tracetune import errors
from tracetune.errors import InvalidInput, QueryError
from tracetune.grouping.connections import turn
from tracetune.grouping.queries.limits import QueryLimits, time_is_up

# What Python and its libraries need of the environment: no keys, and no home folder.
_ENVIRONMENT = (
    "PATH",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "PYTHONHOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TMPDIR",
    "TZ",
)
# The helper's exit status where its output is an error of ours.
REFUSED = 3
# DuckDB notices an interrupt between two batches. A query that does not is ended after this many seconds more.
GRACE_SECONDS = 3.0
# What `faulthandler` prints first when it ends a process whose time is up.
_TIMEOUT = b"Timeout ("
# How long the helper may take to start on a busy machine, beyond the time of the query and the wait for the file.
_START_SECONDS = 60.0


def isolated_answer(
    path: Path,
    query: str,
    params: Sequence[Any] | Mapping[str, Any] | None,
    *,
    limits: QueryLimits,
    wait: float,
    memory_limit: str,
) -> pa.Table:
    """The answer to a query that a helper process runs.

    Raises:
        QueryError: if the query is refused, or ends the helper.
        QueryLimitReached: if the query passes one of its limits.
        InvalidInput: if a parameter has a type that Arrow does not know.
    """
    question = {
        "path": str(path),
        "query": query,
        "limits": asdict(limits),
        "wait": wait,
        "memory_limit": memory_limit,
    }
    with tempfile.TemporaryDirectory(prefix="tracetune-query-") as folder:
        question["folder"] = folder
        sent = json.dumps(question).encode() + b"\n" + _packed(params)
        with turn(path):
            helper = subprocess.Popen(
                [sys.executable, "-P", "-m", "tracetune.grouping.queries.query_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(),
            )
            try:
                answer, words = helper.communicate(
                    sent, timeout=_START_SECONDS + wait + limits.seconds + 2 * GRACE_SECONDS
                )
            except subprocess.TimeoutExpired as error:
                raise time_is_up(limits.seconds) from error
            finally:
                helper.kill()
                helper.wait()
    if helper.returncode == 0:
        return pa.ipc.open_stream(answer).read_all()
    if helper.returncode == REFUSED:
        refusal = json.loads(answer)
        raise getattr(errors, refusal["error"])(refusal["message"])
    if words.startswith(_TIMEOUT):
        raise time_is_up(limits.seconds)
    raise QueryError(_how_it_ended(helper.returncode, words))


def _environment() -> dict[str, str]:
    found = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # The helper imports what this process would.
    return {**found, "PYTHONPATH": os.pathsep.join(place for place in sys.path if place)}


def _how_it_ended(status: int, words: bytes) -> str:
    last = words.decode(errors="replace").strip().splitlines()[-1:]
    how = signal.Signals(-status).name if status < 0 else f"status {status}"
    said = f": {last[0][:200]}" if last else ""
    return f"the query ended the process that it ran in ({how}{said}); the store is as it was: change the query"


def _packed(params: Sequence[Any] | Mapping[str, Any] | None) -> bytes:
    """The parameters as one Arrow row; a name for each, its place where they have none."""
    if params is None:
        return b""
    named = params if isinstance(params, Mapping) else {str(place): value for place, value in enumerate(params)}
    try:
        table = pa.table({name: pa.array([value]) for name, value in named.items()})
    except (pa.ArrowException, TypeError) as error:
        raise InvalidInput(
            f"a parameter of an isolated query cannot be sent to its process ({error}); give plain values"
        ) from error
    table = table.replace_schema_metadata({"named": str(isinstance(params, Mapping))})
    sink = BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()
