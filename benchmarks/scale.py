"""A store that grows: what taking in a million spans costs when there are none, and when there are nine million.

Spans come in portions, as a service's would; each portion is taken in, and the groups are
asked for, in a process of its own, whose peak memory is read off. Nothing else is in
memory: DuckDB has the limit that a store has by default, and works on disk beyond it.
Costs are linear where the seconds of a portion do not grow.

    python benchmarks/scale.py
    python benchmarks/scale.py --spans 10000000
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ingest import SPANS_A_ROLLOUT, pool, rollout_lines

PORTION = 1_000_000
ROLLOUTS_A_SEGMENT = 3_000  # about 60 MB, at which a tracer begins another
GROUPS = "SELECT count(*) AS groups, sum(size)::BIGINT AS calls, avg(reward_std) AS reward_std FROM groups"
ADVANTAGES = "SELECT count(*) AS members, avg(abs(advantage)) AS advantage FROM group_members"
BY_MODULE = "SELECT module, invocation, count(*), avg(reward) FROM calls GROUP BY ALL"

TAKE_IN = """
import json, sys, time
from tracetune.grouping import Store
def peak():
    # Of this program alone: getrusage would tell of the larger one that started it.
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
store = Store(sys.argv[1], wait=60)
start = time.perf_counter()
report = store.ingest()
seconds = time.perf_counter() - start
print(json.dumps([seconds, peak(), report.spans, report.rejected,
                  report.repeated + report.conflicting]))
"""
ASK = """
import json, sys, time
from tracetune.grouping import Store
def peak():
    # Of this program alone: getrusage would tell of the larger one that started it.
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
store = Store(sys.argv[1], wait=60)
seconds, answers = [], []
for query in sys.argv[2:]:
    start = time.perf_counter()
    answers.append(store.sql(query).rows())
    seconds.append(time.perf_counter() - start)
print(json.dumps([seconds, peak(), answers]))
"""


def main() -> None:
    """Grow a store, and print one row a portion."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spans", type=int, default=PORTION, help="spans in all (default 1000000)")
    parser.add_argument("--portion", type=int, default=PORTION, help="spans in each portion (default 1000000)")
    parser.add_argument("--folder", type=Path, help="where to work; there must be room for about 0.4 GB a million")
    arguments = parser.parse_args()
    pool()  # before processes are forked, which then share it
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        grow(Path(folder) / "traces.duckdb", arguments.spans, arguments.portion)


def grow(store: Path, n_spans: int, portion: int) -> None:
    """Take in one portion after the other, and check at the end that every span is there."""
    print("| spans in the store | taking in the last of them, s | spans a second | peak memory, MB | bytes a span "
          "| groups, s | advantages, s | by module, s | peak memory, MB |")  # fmt: skip
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    taken, raw, total = 0, 0, 0.0
    sizes = [portion // 10, portion - portion // 10] + [portion] * ((n_spans - 1) // portion)
    for size in sizes:
        rollouts = range(taken // SPANS_A_ROLLOUT, (taken + size) // SPANS_A_ROLLOUT)
        raw += write_portion(Path(f"{store}.spool"), rollouts)
        seconds, peak, spans, rejected, again = child(TAKE_IN, str(store))
        assert (spans, rejected, again) == (len(rollouts) * SPANS_A_ROLLOUT, 0, 0), (spans, rejected, again)
        taken += spans
        total += seconds
        asked, asking_peak, (groups, advantages, _) = child(ASK, str(store), GROUPS, ADVANTAGES, BY_MODULE)
        # Three of a rollout's spans are calls, and each of them is in a group.
        assert groups[0]["calls"] == advantages[0]["members"] == taken // SPANS_A_ROLLOUT * 3, (groups, advantages)
        times = " | ".join(f"{one:.1f}" for one in asked)
        print(
            f"| {taken:,} | {seconds:.1f} | {spans / seconds:,.0f} | {peak / 1e6:,.0f} "
            f"| {store.stat().st_size / taken:,.0f} | {times} | {asking_peak / 1e6:,.0f} |",
            flush=True,
        )
    print(f"\n{taken:,} spans of {raw / taken:,.0f} bytes in {total:.0f} s, {taken / total:,.0f} spans a second")


def write_portion(spool: Path, rollouts: range) -> int:
    """Closed segments of those rollouts; gives the bytes in them."""
    spool.mkdir(parents=True, exist_ok=True)
    parts = [rollouts[first : first + ROLLOUTS_A_SEGMENT] for first in range(0, len(rollouts), ROLLOUTS_A_SEGMENT)]
    with multiprocessing.Pool(os.cpu_count()) as workers:
        return sum(workers.starmap(write_segment, [(spool, part) for part in parts]))


def write_segment(spool: Path, rollouts: range) -> int:
    """One closed segment."""
    text = b"".join(line for number in rollouts for line in rollout_lines(number))
    (spool / f"20260101T{rollouts.start:012d}Z-1-00000000.jsonl").write_bytes(text)
    return len(text)


def child(program: str, *arguments: str) -> list[Any]:
    """What a program prints that runs in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
