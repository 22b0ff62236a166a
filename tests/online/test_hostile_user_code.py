"""User code that resists: whatever a program or a reward raises is a value, and nobody waits for one that hangs."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from hostile_code import (
    END,
    POLICY,
    RAISED,
    TIMEOUT,
    TURNED,
    Loop,
    Outcome,
    async_generator,
    async_reward,
    coroutine,
    endless,
    generator,
    honest,
    lazy,
    one,
    outcomes,
    plain,
    release,
    reward,
)

import tracetune as tt
from tracetune.online.batches import RolloutRequest, RolloutWarning
from tracetune.online.runner import RolloutRunner
from tracetune.tracer import recording
from tracetune.types import Example, Rollout


@pytest.fixture(autouse=True, scope="module")
def _hanging_threads_end_with_the_module() -> Iterator[None]:
    """Threads that hang here are let go when all tests are done."""
    release.clear()
    yield
    release.set()


GOOD: Outcome = ("ok", None, 1.0)


@pytest.mark.parametrize("word", RAISED)
@pytest.mark.parametrize("program", [plain, coroutine, generator, async_generator, lazy], ids=lambda p: p.__name__)
def test_whatever_a_program_raises_fails_its_rollout_alone(tmp_path: Path, program: Any, word: str):
    """It is counted with its type; the rollouts beside it and the next step are scored."""
    made, failed = outcomes(tmp_path, program, one, [["ant", word, "bee"], ["cow"]])
    kind = RAISED[word]()
    name = type(kind).__qualname__ if type(kind).__module__ == "builtins" else f"{type(kind).__module__}.{word}"
    turned = {"coroutine": TURNED & {"StopIteration"}, "async_generator": TURNED}.get(
        program.__name__, set() if program is plain else {"StopIteration"}
    )
    error = "RuntimeError" if word in turned else name
    if word == "GeneratorExit" and program in (generator, async_generator):
        # A generator's body that raises GeneratorExit has ended well, as one that is closed.
        assert made[0][0] == made[0][2] == GOOD
    else:
        assert made == [[GOOD, ("error", error, None), GOOD], [GOOD]]
        assert failed == [(1, 0), (0, 0)]


@pytest.mark.parametrize("word", RAISED)
@pytest.mark.parametrize("hostile", [reward, async_reward, Loop()], ids=["sync", "async", "async object"])
def test_whatever_a_reward_raises_leaves_its_rollout_unscored(tmp_path: Path, hostile: Any, word: str):
    """It is counted; the rollouts beside it and the next step are scored."""
    made, failed = outcomes(tmp_path, honest, hostile, [["ant", word, "bee"], ["cow"]])
    assert made == [[GOOD, ("ok", None, None), GOOD], [GOOD]]
    assert failed == [(0, 1), (0, 0)]


TRICKS = {
    "child exits": "SystemExit",
    "child interrupts": "KeyboardInterrupt",
    "forgotten child": "LookupError",
    "stops its loop": "LookupError",
    "cancels itself": "asyncio.exceptions.CancelledError",
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("word", TRICKS)
def test_what_tasks_do_to_their_event_loop_fails_their_rollout_alone(tmp_path: Path, word: str):
    """Tasks that exit, a loop that is stopped: the loop goes on for all others, in programs and in rewards."""
    for program in (coroutine, async_generator):
        made, failed = outcomes(tmp_path, program, one, [["ant", word, "bee"], ["cow"]])
        assert made == [[GOOD, ("error", TRICKS[word], None), GOOD], [GOOD]]
        assert failed == [(1, 0), (0, 0)]
    made, failed = outcomes(tmp_path, honest, async_reward, [["ant", word, "bee"], ["cow"]])
    assert made == [[GOOD, ("ok", None, None), GOOD], [GOOD]]
    assert failed == [(0, 1), (0, 0)]


LATE: Outcome = ("timeout", None, None)
UNSCORED: Outcome = ("ok", None, None)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (plain, ["hang"]),
        (generator, ["hang"]),
        (endless, ["endless"]),
        (coroutine, ["sleeps", "stubborn", "thread"]),
        (async_generator, ["sleeps", "stubborn", "thread"]),
    ],
    ids=["plain", "generator", "endless", "coroutine", "async generator"],
)
def test_a_program_that_does_not_end_is_a_timeout(tmp_path: Path, program: Any, words: list[str]):
    """After its time it is left; the rollouts beside it and the next step are scored."""
    made, failed = outcomes(tmp_path, program, one, [["ant", *words, "bee"], ["cow"]], timeout=TIMEOUT)
    assert made == [[GOOD, *[LATE] * len(words), GOOD], [GOOD]]
    assert failed == [(len(words), 0), (0, 0)]


@pytest.mark.parametrize(
    ("hostile", "words"), [(reward, ["hang"]), (async_reward, ["sleeps", "stubborn", "thread"])], ids=["sync", "async"]
)
def test_a_reward_that_does_not_end_leaves_its_rollout_unscored(tmp_path: Path, hostile: Any, words: list[str]):
    """After its time it is left, and counted; the rollouts beside it and the next step are scored."""
    made, failed = outcomes(tmp_path, honest, hostile, [["ant", *words, "bee"], ["cow"]], timeout=TIMEOUT)
    assert made == [[GOOD, *[UNSCORED] * len(words), GOOD], [GOOD]]
    assert failed == [(0, len(words)), (0, 0)]


@pytest.mark.parametrize(
    ("program", "hostile", "bad"),
    [(coroutine, one, LATE), (async_generator, one, LATE), (honest, async_reward, UNSCORED)],
    ids=["coroutine", "async generator", "reward"],
)
def test_a_blocked_event_loop_is_left(tmp_path: Path, program: Any, hostile: Any, bad: Outcome):
    """Who blocks it is late; those that wait behind it begin in other loops, and the next step is scored."""
    words = ["ant", "hang", "child blocks", "bee"]
    with pytest.warns(RolloutWarning, match=r"has blocked the event loop of all rollouts, at .*:\d+; await there"):
        made, failed = outcomes(tmp_path, program, hostile, [words, ["cow"]], timeout=TIMEOUT)
    assert made == [[GOOD, bad, bad, GOOD], [GOOD]]
    assert [sum(counts) for counts in failed] == [2, 0]


def test_what_a_blocked_loop_held_up_is_made_again(tmp_path: Path):
    """A rollout that waited in a loop while another blocked it is interrupted, and made anew with all its time."""
    tries: list[str] = []
    is_waiting = asyncio.Event()

    @tt.program
    async def program(word: str) -> str:
        tries.append(word)
        if word == "waits" and tries.count(word) == 1:
            is_waiting.set()
            await asyncio.sleep(END)
        if word == "blocks":
            await is_waiting.wait()
            release.wait(END)
        return word

    with pytest.warns(RolloutWarning, match="has blocked the event loop"):
        made, failed = outcomes(tmp_path, program, one, [["waits", "blocks"]], timeout=TIMEOUT)
    assert (made, failed) == ([[GOOD, LATE]], [(1, 0)])
    assert tries == ["waits", "blocks", "waits"]
    query = "SELECT example_id, status FROM rollouts ORDER BY ALL"
    assert [tuple(row.values()) for row in tt.Store(tmp_path / "a.duckdb").sql(query).rows()] == [
        ("blocks", "timeout"),
        ("waits", "interrupted"),
        ("waits", "ok"),
    ]


def test_async_programs_share_an_event_loop(tmp_path: Path):
    """Rollouts and rewards of all steps run in one loop, so that they can share a client."""
    loops: set[asyncio.AbstractEventLoop] = set()

    @tt.program
    async def program(word: str) -> str:
        loops.add(asyncio.get_running_loop())
        return word

    async def reward(example: Example, output: Any, rollout: Rollout) -> float:
        loops.add(asyncio.get_running_loop())
        return 1.0

    outcomes(tmp_path, program, reward, [["ant", "bee"], ["cow"]])
    assert len(loops) == 1


def test_closing_takes_seconds_whatever_hangs(tmp_path: Path):
    """A runner closes in a moment although threads and event loops hang."""
    begun = threading.Semaphore(0)

    @tt.program
    async def program(word: str) -> str:
        begun.release()
        release.wait(END)
        return word

    runner = RolloutRunner(program, one, max_concurrency=4, timeout=None)
    requests = [RolloutRequest(Example(word, {"word": word}), 0, "train", 1, POLICY) for word in "ab"]

    def interrupted() -> None:
        with pytest.raises(CancelledError):
            runner.run(requests)

    with recording(tmp_path / "a.duckdb"):
        running = threading.Thread(target=interrupted, daemon=True)
        running.start()
        assert begun.acquire(timeout=END)
        started = time.monotonic()
        runner.close()
        running.join(END)
    assert not running.is_alive()
    assert time.monotonic() - started < 30


def score_that_is_hostile() -> tt.Score:
    """A score whose parts raise when they are looked at."""

    class Parts(dict[str, float]):
        def items(self) -> Any:
            sys.exit(6)

    return tt.Score(1.0, by_module=Parts(search=1.0))


class Number:
    """A number that raises when it is asked for its value."""

    def __float__(self) -> float:
        raise KeyboardInterrupt


@pytest.mark.parametrize("value", [score_that_is_hostile, Number, object, lambda: "1.0"])
def test_a_hostile_score_leaves_its_rollout_unscored(tmp_path: Path, value: Callable[[], Any]):
    """What a reward gives is looked at where it runs."""
    made, failed = outcomes(tmp_path, honest, lambda example, output, rollout: value(), [["ant"]])
    assert (made, failed) == ([[UNSCORED]], [(0, 1)])


def test_without_a_thread_left_a_rollout_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where the system gives no thread the rollout is an error, and the store says so."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    runner = RolloutRunner(honest, one, max_concurrency=1, timeout=END)
    with recording(tmp_path / "a.duckdb", run="run-1"), monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        (rollout,), failures = runner.run([RolloutRequest(Example("ant", {"word": "ant"}), 0, "train", 1, POLICY)])
    runner.close()
    assert (rollout.status, rollout.error_type, failures.programs) == ("error", "RuntimeError", 1)
    query = "SELECT status, error_type FROM rollouts"
    assert tt.Store(tmp_path / "a.duckdb").sql(query).rows() == [{"status": "error", "error_type": "RuntimeError"}]


class Elusive:
    """An object that raises when it is asked for its class, and for anything else."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        sys.exit(7)

    def _no(self, *_: Any) -> Any:
        sys.exit(7)

    __repr__ = __str__ = __eq__ = __hash__ = __bool__ = __len__ = __iter__ = __await__ = __getattr__ = _no  # type: ignore[assignment]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_hostile_output_is_a_rollouts_output(tmp_path: Path, is_async: bool):
    """An output that raises at whatever is done with it is handed to the reward as it is."""
    output = Elusive()

    @tt.program
    def plain(word: str) -> Any:
        return output

    @tt.program
    async def coroutine(word: str) -> Any:
        return output

    def reward(example: Example, given: Any, rollout: Rollout) -> float:
        return float(given is output)

    made, failed = outcomes(tmp_path, coroutine if is_async else plain, reward, [["ant"]])
    assert (made, failed) == ([[GOOD]], [(0, 0)])


def test_feedback_that_is_no_text_is_kept_as_one(tmp_path: Path):
    """A feedback of another type is recorded as its text."""
    score: Any = tt.Score(1.0, feedback=None)  # type: ignore[arg-type]
    made, _ = outcomes(tmp_path, honest, lambda example, output, rollout: score, [["ant"]])
    assert made == [[GOOD]]
    assert tt.Store(tmp_path / "a.duckdb").sql("SELECT feedback FROM scores").rows() == [{"feedback": "None"}]
