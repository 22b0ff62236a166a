"""Banking77: teach a small model to sort a bank's customer messages, on a laptop's CPU.

The program is one module, `classify`, that asks for one of eight labels and shows one
message with its label. The model, SmolLM2-135M-Instruct, mostly chats instead at first, or
makes up labels. Rewards say how close an answer came; groups of rollouts of the same
message say which answers were better.

    python examples/banking77.py --model HuggingFaceTB/SmolLM2-135M-Instruct --seed 0

prints, on two CPU cores, an accuracy on 160 held-out messages of 0.24 before and 0.82 after
40 steps, and 6.7 minutes.

`--model` also takes a checkpoint folder or a GGUF file. `--train` and `--test` take CSV
files with the columns `text,category`; without `--test`, messages are held out from the
training file. The dataset (Casanueva et al. 2020, CC-BY-4.0) is `banking_data/train.csv`
of PolyAI-LDN/task-specific-datasets.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import re
import time
from functools import cache
from pathlib import Path

from openai import OpenAI

import tracetune as tt
from tracetune.trainers.local import LocalTrainer
from tracetune.types import Evaluation, Rollout

DATA = Path(os.environ.get("TRACETUNE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
INTENTS = (
    "card_arrival",
    "lost_or_stolen_card",
    "exchange_rate",
    "cash_withdrawal_charge",
    "change_pin",
    "top_up_failed",
    "verify_my_identity",
    "transfer_timing",
)


@tt.program
def sort_message(message: str, intents: str) -> str:
    """The intent of a customer's message."""
    return classify(message, intents)


@tt.module
def classify(message: str, intents: str) -> str:
    """Ask the policy for one of the labels."""
    policy = tt.policy()
    reply = client(policy.base_url, policy.api_key).chat.completions.create(
        model=policy.model,
        messages=[
            {"role": "system", "content": f"Answer with one of these labels: {intents}"},
            {"role": "user", "content": "Label this message: I want a new PIN please"},
            {"role": "assistant", "content": "change_pin"},
            {"role": "user", "content": f"Label this message: {message}"},
        ],
        temperature=0,
        max_tokens=10,
    )
    return (reply.choices[0].message.content or "").strip()


@cache
def client(base_url: str, api_key: str) -> OpenAI:
    """One client an endpoint, so that its connections are used again."""
    return OpenAI(base_url=base_url, api_key=api_key)


def reward(example: tt.Example, output: str, rollout: Rollout) -> float:
    """1 for the right label and nothing else; below that, half the F1 of its words: some tries come closer."""
    if output == example.labels:
        return 1.0
    said, right = set(re.findall(r"[a-z]+", output.lower())), set(example.labels.split("_"))
    return 0.5 * 2 * len(said & right) / (len(said) + len(right))


def accuracy(evaluation: Evaluation) -> float:
    """The share of messages that were given their label and nothing else."""
    return sum(value == 1.0 for value in evaluation.rewards) / evaluation.n


def messages(path: Path, intents: list[str], seed: int) -> list[tt.Example]:
    """The messages of a file that have one of the intents, in an order drawn from the seed."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["category"] in intents]
    random.Random(seed).shuffle(rows)
    unique = {row["text"]: row["category"] for row in rows}
    labels = ", ".join(intents)
    return [
        tt.Example.of({"inputs": {"message": text, "intents": labels}, "labels": category})
        for text, category in unique.items()
    ]


def main() -> None:
    """Train, and print accuracy on held-out messages before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="id, folder or GGUF file")
    parser.add_argument("--train", type=Path, default=DATA / "banking77_train.csv", help="CSV with text,category")
    parser.add_argument("--test", type=Path, help="CSV with text,category; by default messages held out of --train")
    parser.add_argument("--intents", default=",".join(INTENTS), help="labels to choose from, with commas between")
    parser.add_argument("--held-out", type=int, default=160, help="how many messages accuracy is measured on")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, default=Path("banking77.duckdb"))
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    intents = options.intents.split(",")
    if not options.train.exists():
        parser.error(f"{options.train} does not exist; name the file with --train (see --help for where it comes from)")
    train = messages(options.train, intents, options.seed)
    if options.test:
        held_out = messages(options.test, intents, options.seed)[: options.held_out]
    else:
        held_out, train = train[: options.held_out], train[options.held_out :]
    if not train or not held_out:
        parser.error(f"no message of {options.train} has one of the intents {options.intents}")

    started = time.monotonic()
    result = tt.optimize(
        sort_message,
        train,
        reward,
        LocalTrainer(options.model, learning_rate=1e-4, seed=options.seed, threads=2),
        store=options.store,
        steps=options.steps,
        examples_per_step=8,
        rollouts=8,
        val=held_out,
        max_concurrency=64,
        seed=options.seed,
        resume=options.resume,
    )
    minutes = (time.monotonic() - started) / 60
    assert result.before is not None
    assert result.after is not None
    print("| accuracy before | after | held-out messages | steps | minutes |")
    print("| --- | --- | --- | --- | --- |")
    print(
        f"| {accuracy(result.before):.2f} | {accuracy(result.after):.2f} | {result.after.n} "
        f"| {len(result.reports)} | {minutes:.1f} |"
    )


if __name__ == "__main__":
    main()
