"""Which processes may still end the rollouts that they began; those of all others are interrupted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from tracetune.grouping.ingest.segments import Segment
from tracetune.tracer.processes import Process

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class Writers:
    """The processes that have a segment open.

    Attributes:
        pids: their process ids, for rollouts that were recorded without an identity.
        processes: their identities.
    """

    pids: frozenset[int]
    processes: frozenset[str]

    @classmethod
    def of(cls, found: Iterable[Segment]) -> Writers:
        """Those of the segments that have a writer."""
        written = [segment for segment in found if segment.has_writer]
        return cls(
            frozenset(segment.pid for segment in written if segment.pid is not None),
            frozenset(str(segment.process) for segment in written if segment.process is not None),
        )

    def register(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Make `live_pids(pid)` and `live_processes(process)`, for the rollouts in `touched`.

        A process that is seen to run counts too, though it has no segment open at the moment.
        """
        asked = connection.execute(
            "SELECT DISTINCT process FROM rollout_starts SEMI JOIN touched USING (rollout_id) WHERE process IS NOT NULL"
        ).fetchall()
        running = {text for (text,) in asked if (process := Process.of(text)) is not None and process.runs}
        tables = {
            "live_pids": {"pid": pa.array(sorted(self.pids), type=pa.int64())},
            "live_processes": {"process": pa.array(sorted(self.processes | running), type=pa.string())},
        }
        for name, columns in tables.items():
            connection.register(name, pa.table(columns))
