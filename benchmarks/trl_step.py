"""One training step of the trl trainer against the local one, on the same groups.

Both come to the same gradients, which are compared before anything is timed. What differs
is the way: the local trainer computes what members share once, TRL pads them to rows.

    python benchmarks/trl_step.py
    python benchmarks/trl_step.py --hidden 64 --layers 2 --vocabulary 512 --scale 0.25 --repeats 1
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from train_step import SHAPES, Shape, arguments, make_group, make_model, make_tokenizer

from tracetune.trainers.local import LocalTrainer
from tracetune.trainers.trl import TrlTrainer
from tracetune.types import GroupBatch

SETTINGS = {"learning_rate": 1e-6}


def main() -> None:
    """Time all shapes and print the table."""
    options = arguments()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    print("| prompt | completion | prompts | local | trl | ratio | gradients apart by |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for index, shape in enumerate(SHAPES):
            print(measure(shape, options, Path(folder) / str(index)), flush=True)


def measure(shape: Shape, options: Any, folder: Path) -> str:
    """A row of the table."""
    batch = GroupBatch([make_group(shape, options)])
    tokenizer = make_tokenizer(options)
    trainers: dict[str, Any] = {
        "local": LocalTrainer((make_model(options), tokenizer), device="cpu", threads=options.threads, **SETTINGS),
        "trl": TrlTrainer((make_model(options), tokenizer), device="cpu", threads=options.threads, **SETTINGS),
    }
    gradients = {}
    for name, trainer in trainers.items():
        trainer.step(batch)
        trainer.save(folder / name)
        moments = load_file(folder / name / "optimizer.safetensors")
        gradients[name] = torch.cat([moments[key].flatten() for key in sorted(moments) if key.endswith(".exp_avg")])
    apart = float((gradients["local"] - gradients["trl"]).norm() / gradients["local"].norm())
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(options.repeats):
        for name, trainer in trainers.items():
            started = time.perf_counter()
            trainer.step(batch)
            seconds[name].append(time.perf_counter() - started)
    local, trl = (statistics.median(seconds[name]) for name in ("local", "trl"))
    return (
        f"| {shape.prompt} | {shape.completion} | {shape.prompts} | {local:.2f} s | {trl:.2f} s | {trl / local:.1f} "
        f"| {apart:.0e} |"
    )


if __name__ == "__main__":
    main()
