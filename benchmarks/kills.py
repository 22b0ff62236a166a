"""Processes that trace, and one that ingests, are killed at random moments: nothing is lost, nothing is there twice.

Each writer notes a traced call after it has returned, with one write of its own. SIGKILL
comes at any moment: in a write, in a transaction, while a file is deleted or written anew.
At the end every call that was noted is in the store, once. It exits with 1 where it is not.

    python benchmarks/kills.py --kills 300
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from opentelemetry import trace

import tracetune as tt
from tracetune.grouping import Store
from tracetune.tracer import spool_folder

WRITERS = 4
# Of ten kills, so many are of the process that ingests.
INGESTER_KILLS = 3
CALLS = 5


def main() -> None:
    """Kill as often as is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        sys.exit(not survives(Path(name), options.kills, random.Random(options.seed)))


def survives(folder: Path, kills: int, moments: random.Random) -> bool:
    """Whether all that was noted is in the store once; prints a table of what was found."""
    path = folder / "traces.duckdb"
    with tt.record(path):  # whatever this imports, forked processes have
        talk(lambda text: None)
    Store(path)
    begun = time.perf_counter()
    n_started = 0

    def writer() -> int:
        nonlocal n_started
        n_started += 1
        return forked(write, path, f"w{n_started}", folder / f"w{n_started}.notes")

    writers = [writer() for _ in range(WRITERS)]
    ingester = forked(ingest, path)
    killed: Counter[str] = Counter()
    for _ in range(kills):
        time.sleep(moments.uniform(0.0, 0.3))
        if moments.randrange(10) < INGESTER_KILLS:
            kill(ingester)
            ingester = forked(ingest, path)
            killed["ingesting"] += 1
        else:
            place = moments.randrange(WRITERS)
            kill(writers[place])
            writers[place] = writer()
            killed["writing"] += 1
    for process in (*writers, ingester):
        kill(process)
    store = Store(path, wait=60)
    store.ingest()
    return report(store, folder, killed, time.perf_counter() - begun)


def report(store: Store, folder: Path, killed: Counter[str], seconds: float) -> bool:
    """Compare what was noted with what is in the store."""
    noted, ended = set(), set()
    for notes in folder.glob("*.notes"):
        for line in notes.read_text().splitlines():
            kind, name = line.split()
            (noted if kind == "call" else ended).add(name)
    found = Counter(row["span_id"] for row in store.sql("SELECT span_id FROM spans").rows())
    statuses = {row["rollout_id"]: row["status"] for row in store.sql("SELECT rollout_id, status FROM rollouts").rows()}
    [again] = store.sql("SELECT sum(repeated) AS repeated, sum(conflicting) AS conflicting FROM segments").rows()
    left = [file.name for file in spool_folder(store.path).iterdir() if file.name != "rejected.jsonl"]
    left += [
        file.name for file in folder.iterdir() if not file.name.startswith(store.path.name) and file.suffix != ".notes"
    ]
    wrong = {
        "missing": len(noted - found.keys()),
        "there twice": sum(count > 1 for count in found.values()),
        "repeated or conflicting": again["repeated"] + again["conflicting"],
        "rollouts that ended and are not ok": sum(statuses.get(rollout) != "ok" for rollout in ended),
        "rollouts still called running": sum(status is None for status in statuses.values()),
        "files left": len([name for name in left if not name.endswith(".new")]),
    }
    table = {
        "killed while writing": killed["writing"],
        "killed while ingesting": killed["ingesting"],
        "calls noted": len(noted),
        "spans in the store": sum(found.values()),
        "rollouts interrupted": sum(status == "interrupted" for status in statuses.values()),
        **wrong,
        "seconds": round(seconds),
    }
    for what, count in table.items():
        print(f"{what:36}{count:>10}")
    return not any(wrong.values())


@tt.module
def echo(text: str) -> str:
    """Gives the id of its own span."""
    return f"{trace.get_current_span().get_span_context().span_id:016x}"


@tt.program
def talk(note: Callable[[str], None]) -> None:
    """Calls, each of which is noted when it has returned."""
    for number in range(CALLS):
        note(f"call {echo('x' * (number * 500))}")


def write(path: Path, run: str, notes: Path) -> None:
    """Trace until it is killed."""
    descriptor = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(text: str) -> None:
        os.write(descriptor, f"{text}\n".encode())

    with tt.record(path, run=run) as recording:
        recording.spool._segment_bytes = 100_000  # segments are closed, taken in and deleted all the time
        number = 0
        while True:
            with tt.rollout(example_id="q1", id=f"{run}-{number}") as rollout:
                talk(note)
            note(f"ended {rollout.id}")
            number += 1
            time.sleep(0.005)


def ingest(path: Path) -> None:
    """Take in what there is, now and then write the file anew, until it is killed."""
    store, number = Store(path, wait=60), 0
    while True:
        store.ingest()
        number += 1
        if number % 10 == 0:
            store.compact()


def forked(work: Callable[..., None], *arguments: object) -> int:
    """A process that does this; gives its id."""
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
        except Exception as error:  # noqa: BLE001  it would return into its parent's frames
            print(f"{work.__name__}: {type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)
    return child


def kill(process: int) -> None:
    """End a process as the system does when memory is short."""
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status), "a process ended by itself"


if __name__ == "__main__":
    main()
