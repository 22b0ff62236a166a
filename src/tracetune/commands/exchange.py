"""Commands by which traces come in and go out: `serve`, `import` and `export`."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tracetune.commands.app import WAIT_SECONDS, StorePath, Wait, app, open_store, say
from tracetune.errors import InvalidInput, MissingDependency

if TYPE_CHECKING:
    from rich.progress import Progress

    from tracetune.adapters.otlp import Sender
    from tracetune.grouping import Store

NewStorePath = Annotated[Path, typer.Argument(metavar="STORE", help="The DuckDB file; it is made where it is missing.")]
# Taken into the store before more is read, so that the spool does not grow as large as the files.
_SPOOLED_BYTES = 256 * 1024 * 1024
# Of a broken file, how many refusals are shown one by one.
_SHOWN_REFUSALS = 20


@app.command(epilog="Example: tracetune serve traces.duckdb")
def serve(
    store: NewStorePath,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 4318,
    token: Annotated[
        str | None,
        typer.Option(envvar="TRACETUNE_TOKEN", help="What senders must show; needed if others can reach it."),
    ] = None,
    wait: Wait = WAIT_SECONDS,
) -> None:
    """Receive spans and log records from OpenTelemetry exporters and Collectors.

    It speaks OTLP over HTTP, in protobuf and in JSON, and goes on until it is interrupted.
    """
    with _needs_otlp("serve"):
        from tracetune.adapters.otlp import Receiver
    from tracetune.grouping import Store

    Store(store, wait=wait)  # what is wrong with it is said now, not when it is first looked into
    is_over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: is_over.set())
    with Receiver(store, host=host, port=port, token=token or None) as receiver:
        say(f"{receiver.url} receives traces for {store}; Ctrl-C stops it")
        is_over.wait()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # whoever asks twice need not wait
    say(f"received {receiver.counts.spans} spans and {receiver.counts.records} log records")


@app.command("import", epilog="Example: tracetune import traces.duckdb collector/*.jsonl.zst")
def import_files(
    store: NewStorePath,
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="What to import; - is standard input.")],
    file_format: Annotated[
        str,
        typer.Option("--format", help="What the files are: otlp, openinference, langfuse, langsmith, openai or rows."),
    ] = "otlp",
    run: Annotated[str | None, typer.Option(help="The run that spans without one are recorded under.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COLUMN", help="For rows: the column that holds it; may be given often."),
    ] = None,
    reward: Annotated[str, typer.Option(metavar="NAME", help="The score that is the reward.")] = "reward",
    wait: Wait = WAIT_SECONDS,
) -> None:
    """Import traces and logs from files, gzip and Zstandard unpacked.

    What the store has already is not imported twice. What cannot be read is said, with its
    place; the rest is imported, and the exit status is 1.
    """
    from tracetune.adapters.formats import FormatOptions, format_named
    from tracetune.commands.importing import Import

    for file in files:
        if file != Path("-") and (file.is_dir() or not file.exists()):
            raise InvalidInput(f"there is no file {file}; nothing was imported")
    options = FormatOptions(columns=_columns(column or [], file_format), reward=reward)
    importing = Import(store, format_named(file_format), options, run=run, wait=wait, spooled_bytes=_SPOOLED_BYTES)
    with _progress() as progress:
        task = progress.add_task("importing", total=None)
        for file in files:
            for refused in importing.take(file, lambda count: progress.update(task, advance=count)):
                if importing.refusals <= _SHOWN_REFUSALS:
                    say(f"{file}: {refused.place}: {refused.reason}")
    report = importing.end()
    if importing.refusals > _SHOWN_REFUSALS:
        say(f"and {importing.refusals - _SHOWN_REFUSALS} more places that could not be read")
    say(
        f"{store}: {report.spans} spans and {report.records} log records are new, {report.repeated} were there already"
        + (f", {report.conflicting} have the id of another" if report.conflicting else "")
        + f", {importing.refused + report.rejected} were refused"
    )
    if file_format != "otlp":
        _say_unfinished(importing.without())
    if importing.refused or report.rejected:
        raise typer.Exit(1)


def _columns(pairs: list[str], file_format: str) -> dict[str, str]:
    if pairs and file_format != "rows":
        raise InvalidInput(f"--column is for --format rows; {file_format} has names of its own")
    columns = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not (name and equals and column):
            raise InvalidInput(f"--column {pair!r} is not NAME=COLUMN, such as completion=answer")
        columns[name] = column
    return columns


def _say_unfinished(counts: dict[str, int]) -> None:
    if counts["traces"] > 0:
        say(f"{counts['traces']} traces hold no LM call: nothing in them can be trained on")
    if counts["scores"] > 0:
        say(f"{counts['scores']} scores are of traces or calls that are not here; they count once these are imported")


@app.command(epilog="Example: tracetune export traces.duckdb --format sft -o rows.jsonl --where \"run = 'try-1'\"")
def export(
    store: StorePath,
    row_format: Annotated[
        str | None,
        typer.Option("--format", help="As rows to fine-tune with: sft, dpo, kto, parquet or hf."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PATH", help="Where rows go; standard output by default.")
    ] = None,
    above: Annotated[
        float | None, typer.Option(help="sft, hf: calls whose advantage is above it, not the best of each group.")
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="dpo, hf: by how much the rewards of a pair must differ.")
    ] = None,
    otlp: Annotated[
        str | None, typer.Option(metavar="URL", help="To an OTLP/HTTP server, such as http://127.0.0.1:4318.")
    ] = None,
    parquet: Annotated[Path | None, typer.Option(metavar="FOLDER", help="As Parquet files into a new folder.")] = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="SQL", help="A condition on the columns of the view rollouts; for rows, of calls."),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A header of each request to the server; may be given often."),
    ] = None,
    wait: Wait = WAIT_SECONDS,
) -> None:
    """Write what was recorded as rows to fine-tune with or as Parquet files, or send it to an OTLP server.

    Rows are made of groups, as Grouping() makes them: sft and dpo in OpenAI's form, kto in
    TRL's, parquet is the groups themselves with their tokens, hf a folder of all that for
    Hugging Face's datasets. What no row could be made of is counted.

    To a server spans go as they came; scores, tokens and whatever else is not a span go as
    log records to servers that take those. Parquet files are rollouts, calls, spans and
    scores, in folders by run and day.
    """
    if [otlp, parquet, row_format].count(None) != 2:
        raise InvalidInput("say where to: either --otlp URL, --parquet FOLDER or --format NAME")
    if row_format is not None:
        from tracetune.commands.rows import RowSettings, export_rows

        export_rows(open_store(store, wait), RowSettings(row_format, output, above, margin), where)
        return
    if (output, above, margin) != (None, None, None):
        raise InvalidInput("--output, --above and --margin are for rows; name them with --format")
    if parquet is not None:
        counts = open_store(store, wait).export_parquet(parquet, where)
        say(f"{parquet}: " + ", ".join(f"{count} {view}" for view, count in counts.items()))
    elif otlp is not None:
        _send(open_store(store, wait), otlp, where, header or [])


def _send(store: Store, otlp: str, where: str | None, headers: list[str]) -> None:
    with _needs_otlp("export"):
        from tracetune.adapters.otlp import Sender
        from tracetune.adapters.otlp.sender import headers_of
    from tracetune.grouping.export_otlp import Export

    with Sender(otlp, headers_of(headers)) as sender:
        leaving = Export(store, where)
        with _progress() as progress:
            task = progress.add_task("spans", total=leaving.n_spans)
            for document in leaving.documents():
                sender.send(document)
                progress.update(task, completed=sender.sent.spans)
    _say_sent(sender, otlp)


def _say_sent(sender: Sender, url: str) -> None:
    sent = sender.sent
    say(f"{url} has taken {sent.spans} spans and {sent.records} log records")
    if sent.unserved:
        say(f"it takes no log records, so {sent.unserved} scores and other records were not sent")
    if sent.refused:
        say(f"it has refused {sent.refused}: {sent.reason}")
        raise typer.Exit(1)


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        yield progress


@contextmanager
def _needs_otlp(command: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"{command} needs the package {error.name}, which is not installed; pip install 'tracetune[otlp]'"
        ) from error
