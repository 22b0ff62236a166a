"""Commands that train: `demo` and `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tracetune.commands.app import StorePath, Wait, app
from tracetune.errors import InvalidInput, MissingDependency


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


@app.command(
    epilog="Example: tracetune train logs.duckdb --where \"run = 'prod-2026-11'\" --model Qwen/Qwen3-0.6B "
    "--set learning_rate=1e-5"
)
def train(
    store: StorePath,
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="A condition on the columns of the view calls.")
    ] = None,
    trainer: Annotated[str, typer.Option(help="The name of an installed trainer.")] = "local",
    model: Annotated[
        str | None, typer.Option(help="What it starts from: a Hugging Face id, a checkpoint's folder or a GGUF file.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="COLUMNS", help="What calls of a group share, such as module,invocation."),
    ] = None,
    advantage: Annotated[str | None, typer.Option(help="grpo, centered, rloo or batch.")] = None,
    module: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A module to train, and no others; may be given often.")
    ] = None,
    members: Annotated[int, typer.Option(min=1, help="Calls that a step learns from.")] = 64,
    passes: Annotated[int, typer.Option(min=1, help="How often each group is learned from.")] = 1,
    held_out: Annotated[float, typer.Option(help="The share of examples that is measured and not trained on.")] = 0.1,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the trainer; may be given often."),
    ] = None,
    run: Annotated[str | None, typer.Option(help="The name to record the steps under.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the groups' order and the first weights.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of the run.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Upload, and start a job that costs money, without being asked.")
    ] = False,
    wait: Wait = 600.0,
) -> None:
    """Train on what was recorded or imported, without running the program.

    The folder of the trained weights is printed at the end.
    """
    if model is None:
        raise InvalidInput("say what to start from: --model, a Hugging Face id, a checkpoint's folder or a GGUF file")
    try:
        from tracetune.offline import train as train_stored
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"training needs the package {error.name}, which is not installed; pip install 'tracetune[local]'"
        ) from error
    settings = dict(map(_setting, setting or []))
    if yes:
        settings["yes"] = True
    result = train_stored(
        store,
        trainer,
        model=model,
        where=where,
        grouping=_grouping(by, advantage, module),
        members_per_step=members,
        passes=passes,
        held_out=held_out,
        run=run,
        seed=seed,
        resume=resume,
        wait=wait,
        **settings,
    )
    print(result.checkpoint)


def _grouping(by: str | None, advantage: str | None, modules: list[str] | None) -> Any:
    """How calls are aligned, where anything was said of it."""
    from pydantic import ValidationError

    from tracetune.types import Grouping

    said: dict[str, Any] = {
        "by": by and tuple(column.strip() for column in by.split(",")),
        "advantage": advantage,
        "modules": modules and tuple(modules),
    }
    said = {name: value for name, value in said.items() if value}
    try:
        return Grouping(**said) if said else None
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(f"--{first['loc'][0] if first['loc'] else 'by'}: {first['msg']}") from error


def _setting(pair: str) -> tuple[str, Any]:
    import json

    name, equals, value = pair.partition("=")
    if not (name and equals):
        raise InvalidInput(f"--set {pair!r} is not NAME=VALUE, such as learning_rate=1e-5")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
