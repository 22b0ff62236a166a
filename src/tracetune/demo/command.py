"""What `tracetune demo` does: measure, train, measure again, and show what the store knows of it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console

from tracetune.demo import POLICY_FOLDER
from tracetune.demo.program import find_person
from tracetune.demo.task import examples, reward
from tracetune.grouping import Store
from tracetune.online import Result, optimize
from tracetune.terminal import write_table
from tracetune.trainers.local import LocalTrainer
from tracetune.types import Grouping

INTRODUCTION = """\
A program of two modules answers questions like "ann friend boss" from
seven facts: [b]hop[/b] finds the next name, as often as it sees fit, and
[b]answer[/b] says the last one. Every call is recorded, grouped by module
and invocation, and trained with mmGRPO.
"""

HELD_OUT = 240
STEPS = 60
EXAMPLES_PER_STEP = 6
ROLLOUTS = 12
LEARNING_RATE = 3e-4

QUERIES = {
    "Which module's outcomes still differ between rollouts, hop by hop?": (
        "SELECT module, invocation, count(*) AS groups, round(avg(reward_std), 3) AS reward_std\n"
        "FROM groups GROUP BY ALL ORDER BY ALL"
    ),
    "Did the reward rise, and did rollouts stop failing?": (
        "SELECT split, (step - 1) // 20 * 20 + 1 AS from_step, count(*) AS rollouts,\n"
        "       round(avg(reward), 3) AS reward, count(*) FILTER (status <> 'ok') AS failed\n"
        "FROM rollouts WHERE split = 'train' AND NOT superseded GROUP BY ALL ORDER BY ALL"
    ),
    "What did the policy write at first for the first hop of one question, and what was that worth?": (
        "SELECT completion, count(*) AS members, round(avg(advantage), 2) AS advantage\n"
        "FROM group_members JOIN calls USING (call_id)\n"
        "WHERE group_id = (SELECT group_id FROM groups WHERE module = 'hop' AND invocation = 0\n"
        "                  AND split = 'train' AND step = 1 ORDER BY reward_std DESC, group_id LIMIT 1)\n"
        "GROUP BY completion ORDER BY advantage DESC, completion"
    ),
}


def run_demo(
    *, model: str | None = None, seed: int = 0, steps: int = STEPS, resume: bool = False, store: Path | None = None
) -> Result:
    """Train the demo's program and print what came of it.

    Args:
        model: a Hugging Face id, a checkpoint folder or a GGUF file; the bundled policy by default.
        seed: of the examples' order, the adapter's first weights and the rollouts.
        steps: training steps of the whole run.
        resume: go on with the newest run in the store, after its last checkpoint.
        store: the DuckDB file, `demo.duckdb` in the current folder by default.
    """
    console = Console(highlight=False)
    store = store or Path("demo.duckdb")
    console.print(INTRODUCTION)
    started = time.monotonic()
    trainer = LocalTrainer(
        model or POLICY_FOLDER, learning_rate=LEARNING_RATE, schedule="linear", warmup_steps=5, seed=seed, threads=2
    )
    result = optimize(
        find_person,
        examples("train", 2000, seed),
        reward,
        trainer,
        store=store,
        grouping=Grouping(),
        steps=steps,
        examples_per_step=EXAMPLES_PER_STEP,
        rollouts=ROLLOUTS,
        val=examples("val", HELD_OUT),
        max_concurrency=EXAMPLES_PER_STEP * ROLLOUTS,
        seed=seed,
        resume=resume,
    )
    _print_outcome(console, result, time.monotonic() - started)
    _print_queries(console, Store(store), store)
    return result


def _print_outcome(console: Console, result: Result, seconds: float) -> None:
    if result.before is None or result.after is None:
        return
    first = min(result.validations)
    before = f"before (after step {first})" if first else "before"  # a run that was resumed begins in its middle
    evaluations = {before: result.before, "after": result.after}
    console.print(f"\n{result.run}, {result.after.n} held-out questions:")
    write_table(
        ["policy", "reward", "failed rollouts"],
        [[name, round(evaluation.reward, 3), evaluation.failed] for name, evaluation in evaluations.items()],
        sys.stdout,
    )
    console.print(
        f"held-out reward: {before} {result.before.reward:.3f}, after {result.after.reward:.3f} "
        f"({len(result.reports)} steps, {seconds:.0f} s)"
    )


def _print_queries(console: Console, store: Store, path: Path) -> None:
    console.print(f"\nEvery rollout, call, token and group is in {path}. Three queries worth running:", soft_wrap=True)
    for question, query in QUERIES.items():
        answer = store.sql(query)
        console.print(f"\n[b]{question}[/b]", soft_wrap=True)
        console.print(f'tracetune sql {path} "{query}"', style="dim", markup=False, soft_wrap=True)
        write_table(answer.columns, [list(row.values()) for row in answer.rows()], sys.stdout)
