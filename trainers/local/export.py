"""A trained model as a plain one: adapter and weights merged, in a folder that anything reads."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from tracetune.errors import InvalidInput
from tracetune.files import make_folder, make_private
from tracetune.trainers.local.lora import Adapters


def export_merged(folder: Path, adapters: Adapters, name: str, tokenizer: Any) -> None:
    """Write the model with one adapter merged into its weights, and its tokenizer.

    The folder appears when all of it is written. The model in memory is left as it is.

    Raises:
        InvalidInput: if the folder exists and is not empty.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InvalidInput(f"{folder} exists already; export into a new folder")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    make_folder(partial)
    try:
        adapters.model.get_base_model().save_pretrained(partial, state_dict=adapters.merged(name))
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        make_private(partial)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
