"""A spool in trouble: the program runs on, one warning says so, and what can still be kept is kept and counted."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tracetune import tracer
from tracetune.errors import TracetuneWarning
from tracetune.testing import span_tree
from tracetune.tracer import SpoolCounts, names


@tracer.module
def echo(text: str) -> str:
    """A module."""
    return text


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Inside the block no file grows beyond this, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def outputs(spool: Path) -> list[str]:
    """What the traced calls gave, as far as it is on disk."""
    nodes = span_tree(spool)
    for node in nodes:  # which grows meanwhile
        nodes.extend(node["children"])
    return [json.loads(node["attributes"][names.OUTPUT]) for node in nodes]


def test_a_disk_that_is_full_from_the_start(store: Path, spool: Path) -> None:
    """Nothing can be written at all, and then all of it again."""
    with tracer.recording(store) as recorded:
        with file_size_limit(0), pytest.warns(TracetuneWarning, match="free the disk or mend the folder") as caught:
            assert [echo("a"), echo("b")] == ["a", "b"]
        assert recorded.flush() == SpoolCounts(lost=2)
        echo("c")
        assert recorded.flush() == SpoolCounts(spans=1, lost=2)
    assert len(caught) == 1
    assert outputs(spool) == ["c"]


def test_a_disk_that_fills_up_again_and_again(store: Path, spool: Path) -> None:
    """Each time what was cut is counted as lost, and no line that is whole is spoilt."""

    def in_and_out_of_room() -> SpoolCounts:
        with tracer.recording(store) as recorded:
            for number in range(5):
                echo(f"kept {number}")
                (segment,) = spool.iterdir()
                with file_size_limit(segment.stat().st_size + 50):
                    assert echo(f"lost {number}") == f"lost {number}"
            return recorded.flush()

    with pytest.warns(TracetuneWarning) as caught:
        assert in_and_out_of_room() == SpoolCounts(spans=5, lost=5)
    assert len(caught) == 1
    whole = [line for line in next(spool.iterdir()).read_bytes().splitlines() if len(line) > 50]
    assert [list(json.loads(line)) for line in whole] == [["resourceSpans"]] * 5


@pytest.mark.parametrize("parent", ["/proc", "/proc/self/fd", "/dev/null"])
def test_a_folder_that_can_not_be_written_to(parent: str) -> None:
    """Not even by the superuser: the program runs on, with one warning."""
    place = os.path.realpath(parent)
    with tracer.recording(f"{parent}/traces.duckdb") as recorded:
        with pytest.warns(TracetuneWarning, match=f"the spool {place}/traces.duckdb.spool can't be") as caught:
            assert [echo("a"), echo("b"), echo("c")] == ["a", "b", "c"]
        tracer.reward(1, rollout_id="r1")
        assert len(caught) == 1
        assert recorded.flush() == SpoolCounts(lost=4)


def record_two(store: Path) -> tuple[list[str], int]:
    """What two traced calls gave, and how many spans were lost."""
    with tracer.recording(store) as recorded:
        return [echo("a"), echo("b")], recorded.counts.lost


def test_a_folder_without_permission(store: Path, spool: Path) -> None:
    """A user who may not write there loses the traces and nothing else."""
    read, write = os.pipe()
    store.parent.chmod(0o555)
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            with pytest.warns(TracetuneWarning) as caught:
                found = record_two(store)
            os.write(write, json.dumps([*found, len(caught)]).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    store.parent.chmod(0o755)
    with os.fdopen(read, "rb") as answer:
        assert json.loads(answer.read()) == [["a", "b"], 2, 1]
    assert not spool.exists()


def test_a_store_whose_folder_is_missing_gets_it(tmp_path: Path) -> None:
    """As the spool does, which is beside it."""
    store = tmp_path / "not" / "yet" / "traces.duckdb"
    with tracer.recording(store):
        echo("a")
    assert outputs(Path(f"{store}.spool")) == ["a"]


def test_a_deleted_segment_is_written_again_as_far_as_it_was_not_seen(store: Path, spool: Path) -> None:
    """Lines that went to a file without a name are put into one that has one; flush counts what stands there."""
    with tracer.recording(store) as recorded:
        echo("a")
        (segment,) = spool.iterdir()
        segment.unlink()
        echo("b")
        assert recorded.flush() == SpoolCounts(spans=2)
        assert outputs(spool) == ["a", "b"]


def test_a_deleted_segment_that_can_not_be_written_again_is_lost_and_counted(store: Path, spool: Path) -> None:
    """What flush says is what stands on the disk."""
    with tracer.recording(store) as recorded:
        echo("a")
        tracer.reward(1, rollout_id="r1")
        shutil.rmtree(spool)
        spool.write_text("a file where the folder should be")
        with pytest.warns(TracetuneWarning, match="can't be written to"):
            assert recorded.flush() == SpoolCounts(spans=0, records=0, lost=2)
        spool.unlink()
        echo("b")
        assert recorded.flush() == SpoolCounts(spans=1, records=0, lost=2)
    assert outputs(spool) == ["b"]


def test_descriptors_that_the_program_closes(store: Path, spool: Path) -> None:
    """A program that becomes a daemon closes all that is open: nothing is lost, and no other file is written to."""
    with tracer.recording(store) as recorded:
        echo("a")
        (segment,) = spool.iterdir()
        (number,) = [int(fd) for fd in os.listdir("/proc/self/fd") if _leads_to(fd) == str(segment)]
        os.close(number)
        echo("b")
        assert recorded.flush() == SpoolCounts(spans=2)
        newer = ({*spool.iterdir()} - {segment}).pop()
        (number,) = [int(fd) for fd in os.listdir("/proc/self/fd") if _leads_to(fd) == str(newer)]
        other = store.parent / "other"
        os.close(number)
        with other.open("wb") as theirs:
            assert theirs.fileno() == number
            recorded.flush()
            echo("c")
            assert recorded.flush() == SpoolCounts(spans=3)
        assert other.read_bytes() == b""
    assert outputs(spool) == ["a", "b", "c"]


def _leads_to(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:
        return ""  # the listing's own


def test_signals_in_the_middle_of_writes_change_nothing(store: Path, spool: Path) -> None:
    """A timer that goes off all the time interrupts system calls; each span is written once."""
    went_off = []
    before = signal.signal(signal.SIGALRM, lambda *_: went_off.append(echo("from the handler")))
    try:
        with tracer.recording(store) as recorded:
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            for number in range(1000):
                echo(f"{number}")
            signal.setitimer(signal.ITIMER_REAL, 0)
            counts = recorded.flush()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert counts.lost == 0
    found = outputs(spool)
    assert len(found) == counts.spans
    assert sorted(found) == sorted([*(f"{number}" for number in range(1000)), *went_off])
