"""Commands that train: `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracetune.commands.app import app
from tracetune.errors import MissingDependency


@app.command(epilog="Example: tracetune demo --seed 1")
def demo(
    model: Annotated[
        str | None,
        typer.Option(help="A Hugging Face id, a local checkpoint or a GGUF file; the bundled policy by default."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the examples' order, the first weights and the sampling.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of the whole run; the demo's own number by default.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of the store.")] = False,
    store: Annotated[Path, typer.Option(help="The DuckDB file to record into.")] = Path("demo.duckdb"),
) -> None:
    """Train a small policy, and watch its reward rise."""
    try:
        from tracetune.demo.command import STEPS, run_demo
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"the demo needs the package {error.name}, which is not installed; pip install 'tracetune[local]'"
        ) from error
    run_demo(model=model, seed=seed, steps=steps or STEPS, resume=resume, store=store)
