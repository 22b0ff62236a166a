"""Train on yesterday's logs: no program runs while the weights change.

The logs are made first, as a service would have written them: the demo's program answers
questions, and each call's prompt and completion go into a table with what the answer was
worth. Then they are imported as any table is, and the policy learns from their texts alone.

    python examples/offline_from_logs.py
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson

import tracetune as tt
from tracetune.cli import app
from tracetune.demo import POLICY_FOLDER, examples, reward
from tracetune.demo.program import find_person
from tracetune.testing import MemoryJournal
from tracetune.trainers.endpoint import LocalEndpoint
from tracetune.trainers.models import load_model


def write_logs(path: Path, questions: int, answers: int, threads: int) -> None:
    """A table of calls: each question is answered several times, and every answer has a reward."""
    model, tokenizer = load_model(POLICY_FOLDER)
    asked = [(example, index) for example in examples("train", questions) for index in range(answers)]
    served = LocalEndpoint(model, tokenizer, version="v1", journal=MemoryJournal(), threads=threads)
    served.sampling = tt.Sampling(temperature=1.0)

    def answer(example: tt.Example, index: int) -> None:
        with tt.rollout(example.id, index=index, policy=served.policy) as rollout:
            try:
                tt.reward(reward(example, find_person(**example.inputs), rollout.as_rollout()))
            except tt.FormatError:
                tt.reward(-0.1)

    with served, tt.record("service.duckdb"), ThreadPoolExecutor(64) as pool:
        list(pool.map(lambda pair: answer(*pair), asked))
    columns = "rollout_id, example_id, module, invocation, messages::VARCHAR AS messages, completion, reward"
    rows = tt.Store("service.duckdb").sql(f"SELECT {columns} FROM calls ORDER BY rollout_id, started_at").rows()
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))


def main() -> None:
    """Make logs, import them, train, and see what the program earns before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--answers", type=int, default=12)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--held-out", type=int, default=240)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    logs = Path("answers.jsonl")
    write_logs(logs, options.questions, options.answers, options.threads)
    app(["import", "logs.duckdb", str(logs), "--format", "rows", "--run", "yesterday"], standalone_mode=False)
    result = tt.train(
        "logs.duckdb",
        model=POLICY_FOLDER,
        where="run = 'yesterday'",
        members_per_step=256,
        passes=options.passes,
        program=find_person,
        val=examples("val", options.held_out),
        reward=reward,
        learning_rate=3e-4,
        threads=options.threads,
    )
    assert result.rollouts_before is not None
    assert result.rollouts_after is not None
    print(f"held-out reward: {result.rollouts_before.reward:.3f} before, {result.rollouts_after.reward:.3f} after")


if __name__ == "__main__":
    main()
