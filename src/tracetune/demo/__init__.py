"""The demo: a task, a program written as a user would write it, and a small policy that is weak at first.

`tracetune demo` runs it; its parts are here to be read, and to be tried without a model hub.
"""

from __future__ import annotations

from pathlib import Path

from tracetune.demo.task import examples, reward

POLICY_FOLDER = Path(__file__).parent / "policy"
"""The bundled policy, a folder that `AutoModelForCausalLM.from_pretrained` loads."""

__all__ = ["POLICY_FOLDER", "examples", "reward"]
