"""A process that is killed in the middle of a job: whoever goes on submits nothing twice."""

from __future__ import annotations

import multiprocessing

import job_program
import pytest
from fine_tuning_server import BASE_MODEL, FineTuningServer, one_certificate

from tracetune.grouping import Store

# One process imports everything, and each that will be killed begins as a copy of it.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["job_program", "tracetune.trainers.jobs.litellm"])


@pytest.mark.parametrize(
    ("kind", "place", "fault"),
    [
        ("openai", "upload", "heard"),
        ("openai", "create", "silent"),
        ("openai", "create", "heard"),
        ("openai", "job", "silent"),
        ("litellm", "create", "heard"),
    ],
    ids=lambda value: value,
)
def test_a_killed_process_is_followed_by_one_that_submits_once(tmp_path, monkeypatch, kind, place, fault):
    """Killed while or after it uploads or creates, or while it waits: two rounds are two files and two jobs."""
    monkeypatch.setenv("SSL_CERT_FILE", one_certificate(tmp_path))
    store = tmp_path / "traces.duckdb"
    with FineTuningServer() as service:
        service.faults = {place: [fault]}
        process = _PROCESSES.Process(target=job_program.train, args=(kind, store, service.upstream.base_url))
        process.start()
        assert service.reached.wait(200)
        process.kill()
        process.join()
        result = job_program.train(kind, store, service.upstream.base_url, resume=True)

    names = [name for name, _ in service.files.values()]
    assert len(names) == len(set(names)) == 2
    assert [(job["model"], job["training_file"]) for job in service.jobs.values()] == [
        (BASE_MODEL, "file-1"),
        (f"ft:{BASE_MODEL}:acme::ftjob-1", "file-2"),
    ]
    assert result.policy.version == "jobs@2"
    assert [report.step for report in result.reports] == [1, 2]
    stored = Store(store)
    assert stored.sql("SELECT step, count(*) AS rollouts FROM rollouts WHERE NOT superseded GROUP BY step").rows() == [
        {"step": 1, "rollouts": 3},
        {"step": 2, "rollouts": 3},
    ]
    submitted = "SELECT DISTINCT job_id FROM jobs WHERE status = 'succeeded' ORDER BY job_id"
    assert stored.sql(submitted).rows() == [{"job_id": "ftjob-1"}, {"job_id": "ftjob-2"}]
    trained = (
        "SELECT step, count(*) AS members FROM batches JOIN batch_members USING (record_id) GROUP BY step ORDER BY step"
    )
    assert [row["members"] for row in stored.sql(trained).rows()] == [3, 3]
