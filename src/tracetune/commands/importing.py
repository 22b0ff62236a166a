"""Files into a store: by the spool, a portion at a time, with the counts of it all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import orjson

from tracetune.adapters.formats import Format, FormatOptions, Refused
from tracetune.errors import InvalidInput, StoreError
from tracetune.grouping import IngestReport, Store
from tracetune.tracer import Spool, names, spool_folder


class Import:
    """One import, of any number of files.

    Args:
        path: the store.
        file_format: what the files are.
        options: what the format is told of them.
        run: the run that spans without one are recorded under.
        wait: seconds to wait for another process that holds the store.
        spooled_bytes: how much is written to the spool before the store takes it in.

    Attributes:
        refusals: places that could not be read.
        refused: spans and records lost with them.
    """

    def __init__(
        self,
        path: Path,
        file_format: Format,
        options: FormatOptions,
        *,
        run: str | None,
        wait: float,
        spooled_bytes: int,
    ) -> None:
        self._store = Store(path, wait=wait)
        self._store.ingest()  # what waited there is not counted as imported
        self._format = file_format
        self._options = options
        self._run = run
        self._before = self._unfinished()
        self._spool = Spool(spool_folder(path))
        self._spooled_bytes = spooled_bytes
        self._waiting = 0
        self._report = IngestReport()
        self.refusals = 0
        self.refused = 0

    def take(self, file: Path, advance: Callable[[int], None]) -> Iterator[Refused]:
        """Import one file; `-` is standard input.

        Args:
            file: its path.
            advance: told how many spans and records have been read, as they are.

        Yields:
            What cannot be read, in the order of the file.

        Raises:
            InvalidInput: if the file cannot be opened.
            StoreError: if the spool cannot be written.
        """
        try:
            opened = nullcontext(sys.stdin.buffer) if file == Path("-") else file.open("rb")
        except OSError as error:
            raise InvalidInput(f"{file} cannot be opened: {error.strerror}") from error
        with opened as content:
            for piece in self._format.read(content, self._options):
                if isinstance(piece, Refused):
                    self.refusals += 1
                    self.refused += piece.count
                    yield piece
                    continue
                text = piece.text if self._run is None or not piece.spans else _stamped(piece.text, self._run)
                if not self._spool.write_document(text, spans=piece.spans, records=piece.records):
                    raise StoreError(
                        f"{self._spool.folder} cannot be written; free the disk or mend the folder, then import "
                        f"{file} again: what is there already does not come twice"
                    )
                advance(piece.spans + piece.records)
                self._waiting += len(piece.text)
                if self._waiting >= self._spooled_bytes:
                    self._ingest()

    def end(self) -> IngestReport:
        """Take in the rest, and give what became of everything."""
        self._ingest()
        return self._report

    def without(self) -> dict[str, int]:
        """What was imported and is of no use as it is: traces without an LM call, scores without what they score."""
        return {what: count - self._before[what] for what, count in self._unfinished().items()}

    def _unfinished(self) -> dict[str, int]:
        (row,) = self._store.sql(
            """
            SELECT (SELECT count(DISTINCT trace_id) FROM spans
                    WHERE rollout_id NOT IN (SELECT rollout_id FROM calls)) AS traces,
                   (SELECT count(*) FROM scores WHERE call_id IS NULL
                    AND rollout_id NOT IN (SELECT rollout_id FROM rollouts)) +
                   (SELECT count(*) FROM scores WHERE call_id IS NOT NULL
                    AND call_id NOT IN (SELECT call_id FROM calls)) AS scores
            """
        ).rows()
        return row

    def _ingest(self) -> None:
        self._spool.close()
        self._waiting = 0
        report = self._store.ingest()
        self._report = IngestReport(
            **{name: getattr(self._report, name) + getattr(report, name) for name in IngestReport.__slots__}
        )


def _stamped(line: bytes, run: str) -> bytes:
    """The spans of a line with the run in them, where they have none."""
    document = orjson.loads(line)
    stamp = {"key": names.RUN, "value": {"stringValue": run}}
    for resource_spans in document["resourceSpans"]:
        for scope_spans in resource_spans["scopeSpans"]:
            for span in scope_spans["spans"]:
                attributes = span.setdefault("attributes", [])
                if all(attribute["key"] != names.RUN for attribute in attributes):
                    attributes.append(stamp)
    return orjson.dumps(document) + b"\n"
