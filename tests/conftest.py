"""What every test stands on: small models on one thread, and no network for model files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before anything imports torch or transformers; `make test` sets the same.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # litellm would fetch its list of prices

# Before any test module is imported: `@settings(…)` takes the rest of its values from the profile that is loaded.
# A busy machine makes any single example slow, so no example has a deadline.
settings.register_profile("tracetune", deadline=None)
settings.load_profile("tracetune")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder that holds the whole project."""
    return Path(__file__).resolve().parent.parent
