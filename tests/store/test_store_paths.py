"""A store that is reached by several paths is one store, with one spool and one set of checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import tracetune as tt
from tracetune.errors import InvalidInput, StoreError, TracetuneError, TracetuneWarning
from tracetune.online.checkpoints import Checkpoints
from tracetune.tracer import Spool, names, spool_folder, store_path


@tt.module
def echo(text: str) -> str:
    """A module."""
    return text


def record(store: str | Path, text: str) -> None:
    """One traced call."""
    with tt.record(store):
        echo(text)


def texts(store: str | Path) -> list[str]:
    """What a store holds."""
    return [row["input"] for row in tt.Store(store).sql("SELECT input FROM spans ORDER BY started_at").rows()]


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str | Path]:
    """Every way to one store: its own, a link, a link to that, by a linked folder, and from where we stand."""
    folder = tmp_path / "data"
    folder.mkdir()
    store = folder / "traces.duckdb"
    link, second, linked_folder = tmp_path / "link.duckdb", tmp_path / "second", tmp_path / "elsewhere"
    link.symlink_to(store)
    second.symlink_to("link.duckdb")
    linked_folder.symlink_to(folder)
    monkeypatch.chdir(folder)
    return [store, link, second, linked_folder / "traces.duckdb", "traces.duckdb", "../elsewhere/./traces.duckdb"]


def test_a_store_by_link_and_by_path_is_one(paths, tmp_path):
    """What is recorded by any path is read by every other, before and after the file was written anew."""
    for number, path in enumerate(paths):
        record(path, f"{number}")  # the first ones before there is a file that the links could lead to
    expected = [f'{{"text":"{number}"}}' for number in range(len(paths))]
    assert [texts(path) for path in paths] == [expected] * len(paths)
    for path in paths:
        tt.Store(path).compact()
        record(path, "after")
        expected.append('{"text":"after"}')
        assert [texts(other) for other in paths] == [expected] * len(paths)
    assert (tmp_path / "link.duckdb").is_symlink()
    assert {tt.Store(path).path for path in paths} == {tmp_path / "data/traces.duckdb"}
    assert sorted(os.listdir(tmp_path)) == ["data", "elsewhere", "link.duckdb", "second"]
    assert sorted(os.listdir(tmp_path / "data")) == ["traces.duckdb", "traces.duckdb.spool"]


def test_what_stands_beside_a_store_is_named_after_its_file(paths, tmp_path):
    """Spool and checkpoints are the same by every path."""
    beside = tmp_path / "data"
    assert {spool_folder(path) for path in paths} == {beside / "traces.duckdb.spool"}
    assert {Checkpoints(Path(path), "run-1").folder for path in paths} == {beside / "traces.duckdb.checkpoints/run-1"}


def test_a_recording_by_another_path_is_a_recording_to_the_same_store(paths):
    """Blocks inside each other may name it as they like."""
    with tt.record(paths[0]), tt.record(paths[1]), tt.record(paths[4]):
        echo("inside")
    assert texts(paths[2]) == ['{"text":"inside"}']


def test_a_link_that_leads_to_itself_is_refused(tmp_path):
    """There is no file that it could mean."""
    link = tmp_path / "traces.duckdb"
    link.symlink_to(link)
    with pytest.raises(InvalidInput, match="is a link that leads to itself; give another path"):
        tt.Store(link)


def test_a_folder_is_no_store(tmp_path):
    """By its own path or by a link: it says so, and nothing is made in it."""
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(TracetuneError):
        tt.Store(tmp_path / "link")
    assert os.listdir(tmp_path) == ["link"]


def test_traces_beside_a_link_are_told_of(tmp_path):
    """Earlier versions named a spool after the link: its traces are not forgotten in silence."""
    store, link = tmp_path / "traces.duckdb", tmp_path / "link.duckdb"
    link.symlink_to(store)
    left = Spool(tmp_path / "link.duckdb.spool")
    left.write_record(names.RECORD_JOB, {"job_id": "1"})
    left.close()
    with pytest.warns(TracetuneWarning, match=r"traces wait in .*link\.duckdb\.spool, .* move the files"):
        tt.Store(link)


def test_a_store_with_two_names_is_not_written_anew(tmp_path):
    """A hard link would keep the old file, and become another store."""
    store = tt.Store(tmp_path / "traces.duckdb")
    os.link(store.path, tmp_path / "other.duckdb")
    with pytest.raises(StoreError, match="has another name"):
        store.compact()
    (tmp_path / "other.duckdb").unlink()
    store.compact()


def test_a_path_is_made_once_where_links_are_followed(tmp_path, monkeypatch):
    """A store named relative to a folder stays the same one when the program goes elsewhere."""
    monkeypatch.chdir(tmp_path)
    store = tt.Store("traces.duckdb")
    monkeypatch.chdir("/")
    assert store.path == store_path(tmp_path / "traces.duckdb")
    assert store.sql("SELECT 1 AS one").rows() == [{"one": 1}]
