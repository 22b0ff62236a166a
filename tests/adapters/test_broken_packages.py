"""Packages that cannot be patched: broken, renamed inside, or hidden by a file of the program's own.

Each is written into a folder that the program imports from first, and the program runs in a
process of its own: an adapter that was imported once would hide what the next import does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest

import tracetune
from tracetune.adapters.patching import replace
from tracetune.errors import TracetuneWarning


class Stand(NamedTuple):
    """Files that stand for a package: as small as its adapter can patch, and one that cannot be patched to the end."""

    package: str
    files: dict[str, str]
    changed: str  # the file with what is patched last
    before: str  # a text in it
    after: str  # in place of that text
    recorded: str  # as the warning names it


REFUSING = """
class Refusing(type):
    def __setattr__(cls, name, value):
        if name == "%s":
            raise TypeError(f"{name} cannot be replaced")
        super().__setattr__(name, value)
"""

STANDS = {
    "openai": Stand(
        "openai",
        {
            "__init__.py": "class Stream: pass\nclass AsyncStream: pass\n",
            "_legacy_response.py": "class LegacyAPIResponse: pass\n",
            "resources/chat/completions.py": "class Completions:\n"
            "    def create(self): pass\n    def parse(self): pass\n"
            "class AsyncCompletions:\n    def create(self): pass\n    def parse(self): pass\n",
            "types/chat.py": "class ChatCompletion: pass\n",
        },
        "resources/chat/completions.py",
        "class AsyncCompletions:",
        REFUSING % "parse" + "class AsyncCompletions(metaclass=Refusing):",
        "calls of the OpenAI SDK",
    ),
    "langchain": Stand(
        "langchain_core",
        {
            "callbacks.py": "class BaseCallbackHandler: pass\n",
            "exceptions.py": "class OutputParserException(Exception): pass\n",
            "messages.py": "class BaseMessage: pass\ndef convert_to_openai_messages(messages): return []\n",
            "outputs.py": "class LLMResult: pass\n",
            "runnables/config.py": "from contextvars import ContextVar\n"
            "var_child_runnable_config = ContextVar('config', default=None)\n",
            "tracers/context.py": "_configure_hooks = []\n"
            "def register_configure_hook(variable, inheritable): _configure_hooks.append((variable, inheritable))\n",
        },
        "tracers/context.py",
        "_configure_hooks",
        "_hooks",
        "nodes and calls of LangChain and LangGraph",
    ),
    "litellm": Stand(
        "litellm",
        {
            "__init__.py": "",
            "chat_completions/dispatch.py": "_DISPATCH = object()\n_ADISPATCH = object()\n",
            "litellm_core_utils/streaming_handler.py": "class CustomStreamWrapper:\n    def __next__(self): pass\n"
            "    def __anext__(self): pass\n    def close(self): pass\n    def aclose(self): pass\n",
            "types/utils.py": "class ModelResponse: pass\n",
        },
        "litellm_core_utils/streaming_handler.py",
        "class CustomStreamWrapper:",
        REFUSING % "aclose" + "class CustomStreamWrapper(metaclass=Refusing):",
        "calls of litellm",
    ),
    "dspy": Stand(
        "dspy",
        {
            "__init__.py": "class Module:\n    def __call__(self): pass\n    def acall(self): pass\n"
            "class Predict(Module): pass\nclass Prediction: pass\n",
            "adapters/types/tool.py": "class Tool:\n    def __call__(self): pass\n    def acall(self): pass\n",
            "clients/execution.py": "def execute(lm, call): pass\ndef aexecute(lm, call): pass\n",
            "clients/call_result.py": "def legacy_output(response): return {}\n",
            "clients/lm15_boundary.py": "def history_messages(request): return []\n",
            "utils/exceptions.py": "class AdapterParseError(Exception): pass\n",
        },
        "adapters/types/tool.py",
        "class Tool:",
        REFUSING % "acall" + "class Tool(metaclass=Refusing):",
        "modules, tools and calls of DSPy",
    ),
}

# Records twice with all adapters; says what was warned of and recorded, and which packages were changed, and when.
PROGRAM = """
import importlib, json, sys, types, warnings

import tracetune as tt

packages = json.loads(sys.argv[1])

def functions_of(names):
    found = {}
    for name in names:
        try:
            module = importlib.import_module(name)
        except BaseException:
            continue
        for where in (module, *(value for value in vars(module).values() if isinstance(value, type))):
            for key, value in vars(where).items():
                if isinstance(value, types.FunctionType | list) or key.endswith("DISPATCH"):
                    found[f"{name}.{where.__name__}.{key}"] = repr(value)
    return found

def functions():
    return {adapter: functions_of(names) for adapter, names in packages.items()}

@tt.program
def answer():
    return 42

before = functions()
patched = []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        with tt.record("traces.duckdb", instrument=list(packages)):
            assert answer() == 42
            patched.append([adapter for adapter, found in functions().items() if found != before[adapter]])
print(json.dumps({
    "warnings": [str(one.message) for one in caught if one.category is tt.errors.TracetuneWarning],
    "rollouts": len(tt.Store("traces.duckdb").sql("FROM rollouts WHERE output = '42'")),
    "patched": patched,
    "left changed": [adapter for adapter, found in functions().items() if found != before[adapter]],
}))
"""


def write(folder: Path, *adapters: str) -> None:
    """Write the stands of those adapters' packages."""
    for adapter in adapters:
        package = folder / STANDS[adapter].package
        for name, text in STANDS[adapter].files.items():
            file = package / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            for parent in file.relative_to(package).parents:
                (package / parent / "__init__.py").touch()


def recorded(folder: Path) -> dict[str, Any]:
    """What comes of a program that records with every adapter, whose packages are those in the folder."""
    packages = {
        adapter: [
            ".".join([stand.package, *Path(name).with_suffix("").parts]).removesuffix(".__init__")
            for name in stand.files
        ]
        for adapter, stand in STANDS.items()
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(packages)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def recorded_with(patched: list[str], warnings: list[str]) -> dict[str, Any]:
    """What must come of it when those are patched."""
    return {"warnings": warnings, "rollouts": 2, "patched": [patched, patched], "left changed": []}


def test_stands_are_patched_and_put_back(tmp_path: Path) -> None:
    """Nothing is wrong with the stands but what the tests below make wrong."""
    write(tmp_path, *STANDS)
    assert recorded(tmp_path) == recorded_with([*STANDS], [])


@pytest.mark.parametrize(
    ("raising", "named"),
    [
        ("raise SystemExit(3)", "(SystemExit: 3)"),
        ("raise RuntimeError('no licence')", "(RuntimeError: no licence)"),
        ("class Panic(BaseException): pass\nraise Panic('in Rust')", "Panic: in Rust)"),
    ],
)
def test_packages_that_cannot_be_imported(raising: str, named: str, tmp_path: Path) -> None:
    """Whatever they raise, the program is recorded, and one warning each says what is missing and what to do."""
    for stand in STANDS.values():
        (tmp_path / stand.package).mkdir()
        (tmp_path / stand.package / "__init__.py").write_text(raising)
    answer = recorded(tmp_path)
    assert answer == recorded_with([], answer["warnings"])
    for (adapter, stand), warning in zip(STANDS.items(), answer["warnings"], strict=True):
        assert warning.startswith(f"{stand.recorded} are not recorded: the adapter {adapter!r} could not be ")
        assert named in warning
        assert f'install a version that the adapter knows with pip install -U "tracetune[{adapter}]"' in warning


def test_files_of_the_programs_own_in_place_of_packages(tmp_path: Path) -> None:
    """The warning names the file, and says that it can be renamed."""
    files = [tmp_path / f"{stand.package}.py" for stand in STANDS.values()]
    for file in files:
        file.write_text("answer = 42\n")
    answer = recorded(tmp_path)
    assert answer == recorded_with([], answer["warnings"])
    for file, warning in zip(files, answer["warnings"], strict=True):
        assert f"imported from {file}; rename {file} if it is a file of your own, install a version" in warning


def test_packages_that_were_renamed_inside(tmp_path: Path) -> None:
    """A file that the adapter imports from is not there: the warning names it."""
    write(tmp_path, *STANDS)
    for stand in STANDS.values():
        (tmp_path / stand.package / stand.changed).unlink()
    answer = recorded(tmp_path)
    assert answer == recorded_with([], answer["warnings"])
    for stand, warning in zip(STANDS.values(), answer["warnings"], strict=True):
        assert Path(stand.changed).stem in warning.split("could not be switched on (")[1].split(")")[0]


@pytest.mark.parametrize("adapter", STANDS)
def test_a_package_that_can_be_patched_in_part_only(adapter: str, tmp_path: Path) -> None:
    """What was replaced before the part that cannot be is put back at once; the other adapters are on."""
    stand = STANDS[adapter]
    write(tmp_path, *STANDS)
    file = tmp_path / stand.package / stand.changed
    file.write_text(file.read_text().replace(stand.before, stand.after))
    answer = recorded(tmp_path)
    [warning] = answer["warnings"]
    assert answer == recorded_with([other for other in STANDS if other != adapter], [warning])
    assert warning.startswith(stand.recorded)


def test_a_module_without_a_spec_breaks_nothing(tmp_path: Path) -> None:
    """A stand-in that a test suite put into `sys.modules` is warned of where the recording begins."""
    program = """
import sys, types, warnings
sys.modules["openai"] = types.ModuleType("openai")
sys.modules["dspy"] = None
import tracetune as tt
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with tt.record("traces.duckdb"):
        tt.program(lambda: 42)()
print([(str(one.message)[:40], one.lineno) for one in caught if one.category is tt.errors.TracetuneWarning])
print(len(tt.Store("traces.duckdb").sql("FROM rollouts")))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[('calls of the OpenAI SDK are not recorded', 8)]", "1"], done.stderr


def test_every_function_is_put_back_although_one_cannot_be() -> None:
    """An inherited function is inherited again, and the one that fails does not keep the others from their places."""

    class Stubborn(type):
        def __setattr__(cls, name: str, value: Any) -> None:
            if name == "ask" and vars(cls).get("is_stubborn"):
                raise TypeError("ask stays")
            super().__setattr__(name, value)

    class Client:
        def send(self) -> str:
            return "sent"

    class Heir(Client, metaclass=Stubborn):
        is_stubborn = False

        def ask(self) -> str:
            return "asked"

        def close(self) -> str:
            return "closed"

    originals = dict(vars(Heir))
    names = ("send", "ask", "close")
    put_back = replace([(Heir, name, lambda original: lambda self: original(self) * 2) for name in names])
    assert (Heir().send(), Heir().ask(), Heir().close()) == ("sentsent", "askedasked", "closedclosed")
    Heir.is_stubborn = True
    with pytest.raises(TypeError, match="ask stays"):
        put_back()
    assert (Heir().send(), Heir().close(), "send" in vars(Heir)) == ("sent", "closed", False)
    Heir.is_stubborn = False
    assert set(vars(Heir)) == set(originals)


def test_a_request_that_cannot_be_read_goes_out(client: openai.OpenAI, model_server: Any, store: Path) -> None:
    """The program has its answer, and is warned once that the requests are missing."""

    class Message(dict[str, Any]):
        def model_dump(self, **_: Any) -> dict[str, Any]:
            raise RuntimeError("no dump")

    asked = Message(role="user", content="who?")
    with tracetune.record(store, instrument=["openai"]) as recording:
        with pytest.warns(
            TracetuneWarning, match=r"a request of openai could not be recorded \(RuntimeError: no dump\)"
        ):
            client.chat.completions.create(model="tiny", messages=[asked])  # type: ignore[list-item]  # hostile
        client.chat.completions.create(model="tiny", messages=[asked])  # type: ignore[list-item]  # hostile
        assert recording.counts.spans == 0
    assert [body["messages"] for _, body in model_server.requests] == [[{"role": "user", "content": "who?"}]] * 2
