"""Where a local model comes from: a checkpoint folder, the Hugging Face hub, or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from tracetune.errors import InvalidInput, ModelNotFound

# What transformers raises where a file is missing, cut short or of another kind.
_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(
    source: str | Path, *, dtype: torch.dtype | str = torch.float32, device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer.

    The weights of a GGUF file are dequantised, and the model is then a plain one that can
    be trained and saved like any other.

    Args:
        source: a folder with a checkpoint, a GGUF file, or the id of a model on the hub.
        dtype: the type that the weights are loaded as, by itself or by name; "auto" is the
            one that they were saved as.
        device: where they go, as PyTorch names it; "auto" is a CUDA device or Apple's GPU
            where there is one, and the CPU elsewhere.

    Raises:
        InvalidInput: if there is no such type or device here.
        ModelNotFound: if the path does not exist, holds no model that can be read, or the
            hub has no such model or can't be reached.

    Example:
        >>> model, tokenizer = load_model("checkpoints/step-40")  # doctest: +SKIP
        >>> model, tokenizer = load_model("HuggingFaceTB/SmolLM2-135M-Instruct")  # doctest: +SKIP
    """
    target, dtype = _device(device), _dtype(dtype)
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        model, tokenizer = _from_gguf(path, dtype)
    elif path.is_dir():
        model, tokenizer = _from_folder(path, dtype)
    elif path.exists():
        raise ModelNotFound(f"{path} is not a model; give a folder with config.json, a .gguf file, or a hub id")
    elif isinstance(source, Path) or _looks_like_path(source):
        raise ModelNotFound(f"{path} does not exist; give a folder with config.json, a .gguf file, or a hub id")
    else:
        model, tokenizer = _from_hub(source, dtype)
    return model.to(target), tokenizer


def _device(name: str) -> torch.device:
    if name == "auto":
        here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        return torch.device(next(device for device, is_here in here.items() if is_here))
    try:
        # Asking for a tensor there is how one learns whether the device is here.
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(f'there is no device {name!r} here ({_first_line(error)}); try "auto"') from error


def _dtype(name: torch.dtype | str) -> torch.dtype | str:
    if isinstance(name, torch.dtype) or name == "auto":
        return name
    dtype = _DTYPES.get(name)
    if dtype is None:
        raise InvalidInput(f"dtype is {name!r}; it can be {', '.join(map(repr, (*_DTYPES, 'auto')))}")
    return dtype


def _looks_like_path(source: str) -> bool:
    """Whether a name that is not there was meant as a path: a hub id is `name` or `owner/name`."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source


def _from_folder(path: Path, dtype: torch.dtype | str) -> tuple[Any, Any]:
    if not (path / "config.json").exists():
        raise ModelNotFound(f"{path} holds no model: it has no config.json; give the folder that save_pretrained wrote")
    try:
        return _loaded(str(path), dtype, local_files_only=True)
    except _UNREADABLE as error:
        raise ModelNotFound(f"{path} holds no model that can be read ({_first_line(error)}); save it again") from error


def _from_hub(name: str, dtype: torch.dtype | str) -> tuple[Any, Any]:
    try:
        return _loaded(name, dtype)
    except _UNREADABLE as error:
        raise ModelNotFound(
            f"{name!r} is no local path, and the hub gave no such model ({_first_line(error)}); check the name and the "
            "network, or give a local folder"
        ) from error


def _from_gguf(path: Path, dtype: torch.dtype | str) -> tuple[Any, Any]:
    if not path.is_file():
        raise ModelNotFound(f"{path} does not exist; give the path of a .gguf file")
    try:
        quantised, tokenizer = _loaded(str(path.parent), dtype, gguf_file=path.name)
    except _UNREADABLE as error:
        raise ModelNotFound(
            f"{path} holds no model that can be read ({_first_line(error)}); download it again"
        ) from error
    # transformers remembers that the weights were quantised once, and would not train them.
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=quantised.dtype)  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    model.load_state_dict(quantised.state_dict())
    return model.eval(), tokenizer


def _loaded(source: str, dtype: torch.dtype | str, **where: Any) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(source, **where)
    # The bar counts weights that are copied in a moment; downloads have one of their own.
    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    try:
        return AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **where), tokenizer
    finally:
        if shows_bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # likewise


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
