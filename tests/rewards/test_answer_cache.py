"""Answers on disk: asked once, whoever asks, and never taken for the answer to another question."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tracetune.errors import InvalidInput, JudgeError
from tracetune.rewards import judge
from tracetune.rewards.answers import AnswerCache
from tracetune.types import Example

SUM = Example("q1", {"sum": "2 + 2"}, labels=4)
EIGHT = '{"feedback": "right", "score": 8}'


def test_the_same_output_is_judged_once(server, tmp_path):
    """A second judge with the same file, as in the next run, asks nobody."""
    server.answers = [EIGHT]
    settings = {"cache": tmp_path / "answers.sqlite", **server.settings}
    scores = [judge("right", **settings)(SUM, "four") for _ in range(3)]
    assert scores == [scores[0]] * 3
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"rubric": "short"},
        {"points": 20},
        {"model": "openai/other"},
        {"temperature": 0.5},
        {"output": "five"},
        {"example": Example("q1", {"sum": "2 + 3"}, labels=4)},
        {"example": Example("q1", {"sum": "2 + 2"}, labels=5)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_question_is_another_entry(server, tmp_path, change):
    """Everything that an answer depends on is part of the question."""
    server.answers = [EIGHT, '{"feedback": "", "score": 2}']

    def score(rubric="right", output="four", example=SUM, **settings):
        reward = judge(rubric, **{"cache": tmp_path / "answers.sqlite", **server.settings, **settings})
        return reward(example, output)

    score()
    score(**change)
    assert len(server.requests) == 2
    score()
    score(**change)
    assert len(server.requests) == 2


def test_another_key_and_another_timeout_are_the_same_question(server, tmp_path):
    """A key is nothing that an answer depends on, and does not come near the file."""
    server.answers = [EIGHT]
    path = tmp_path / "answers.sqlite"
    judge("right", cache=path, **server.settings)(SUM, "four")
    judge("right", cache=path, **{**server.settings, "api_key": "another", "timeout": 9.0})(SUM, "four")
    assert len(server.requests) == 1
    assert b"secret-key" not in path.read_bytes()


def test_samples_are_kept_apart(server, tmp_path):
    """The second sample of a question is not the first one again."""
    server.answers = ['{"score": 10}', '{"score": 4}']
    reward = judge("right", samples=2, cache=tmp_path / "answers.sqlite", **server.settings)
    assert [reward(SUM, "four").value for _ in range(2)] == [0.7, 0.7]
    assert len(server.requests) == 2


def test_trouble_is_not_kept(server, tmp_path):
    """What could not be read, or did not come, is asked again the next time; a corrected answer is kept."""
    server.answers = ["no idea", (401, {}), "no idea", EIGHT]
    reward = judge("right", attempts=2, cache=tmp_path / "answers.sqlite", **server.settings)
    with pytest.raises(JudgeError, match="could not be asked"):
        reward(SUM, "four")
    assert [reward(SUM, "four").value for _ in range(2)] == [0.8, 0.8]
    assert len(server.requests) == 4


def test_who_asks_the_same_at_once_waits_for_the_first(tmp_path):
    """Twelve threads with one question put it once, and all have the answer."""
    cache, asked = AnswerCache(tmp_path / "answers.sqlite"), []

    def ask() -> str:
        asked.append(threading.get_ident())
        time.sleep(0.1)
        return "8"

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda _: cache.answer({"question": 1}, ask), range(12)))
    assert (answers, len(asked)) == (["8"] * 12, 1)


def test_one_who_fails_lets_the_next_one_ask(tmp_path):
    """An error is the asker's own: those who waited ask for themselves."""
    cache, outcomes = AnswerCache(tmp_path / "answers.sqlite"), iter([ValueError("limit"), "8"])

    def ask() -> str:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    with pytest.raises(ValueError, match="limit"):
        cache.answer({"question": 1}, ask)
    assert cache.answer({"question": 1}, ask) == "8"


WRITER = """
import sys
from tracetune.rewards.answers import AnswerCache

cache = AnswerCache(sys.argv[1])
for number in range(100):
    cache.answer({"question": number % 50}, lambda: f"{number % 50} of {sys.argv[2]}")
answers = [cache.answer({"question": number}, lambda: "lost") for number in range(50)]
assert all(answer.startswith(f"{number} of ") for number, answer in enumerate(answers)), answers
"""


def test_many_processes_share_a_file(tmp_path):
    """Four processes that write the same questions at once lose nothing and see each other's answers."""
    path = str(tmp_path / "answers.sqlite")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, str(name)]) for name in range(4)]
    assert [writer.wait(120) for writer in writers] == [0] * 4
    cache = AnswerCache(path)
    answers = [cache.answer({"question": number}, lambda: "lost") for number in range(50)]
    assert [answer.split(" of ")[0] for answer in answers] == [str(number) for number in range(50)]


def test_a_file_that_is_no_cache_is_refused(tmp_path):
    """Something else is not overwritten, and a folder that is not there is named."""
    other = tmp_path / "notes.txt"
    other.write_text("not a database, and longer than its header would be" * 20)
    for path in (other, tmp_path / "missing" / "answers.sqlite", tmp_path):
        with pytest.raises(InvalidInput, match="cannot be a cache of answers"):
            AnswerCache(path)
    assert other.read_text().startswith("not a database")
