"""The engine: rows in, requests to the service out, and their tokens back.

One thread sends and receives. Rows that wait together and have the same prompt and
sampling are one request for several samples: the service computes their prompt once. The
service gives a completion whole, so a streamed row has its text in one piece.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from tracetune.trainers.endpoint.models import decode_of
from tracetune.trainers.endpoint.problems import Problem
from tracetune.trainers.endpoint.rows import Piece, Row
from tracetune.trainers.tinker.service import Sampler, is_of_the_request, reason_of
from tracetune.types import Journal

T = TypeVar("T")

# Rollouts that start together ask together: the engine waits until none has asked for a
# moment, which is short beside what a service takes, and has their prompt computed once.
QUIET_SECONDS = 0.01
GATHER_SECONDS = 0.1
# How often the engine looks whether clients have left while their samples are under way.
LOOK_SECONDS = 0.25


class TinkerEngine:
    """Samples rows at a service.

    Attributes:
        sampler: the weights to sample from; rows that were sent keep those that they were sent to.
        version: of these weights.
        completions_served: how many rows it has finished and recorded.
    """

    def __init__(self, sampler: Sampler, tokenizer: Any, *, version: str, journal: Journal) -> None:
        """Prepare an engine; a facade starts it.

        Args:
            sampler: the weights to sample from.
            tokenizer: the model's.
            version: of these weights.
            journal: gets every finished row before its client does.
        """
        self.sampler = sampler
        self.version = version
        self.completions_served = 0
        self._decode = decode_of(tokenizer)
        self._end_tokens = frozenset({tokenizer.eos_token_id} - {None})
        self._journal = journal
        self._post: Callable[[list[Piece]], None] = _to_nobody
        self._waiting: deque[Row] = deque()
        self._sent: dict[Future[Any], list[Row]] = {}
        self._answered: deque[Future[Any]] = deque()
        self._changed = threading.Condition()
        self._exclusive = threading.Lock()
        self._held = False
        self._busy = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="tracetune-tinker", daemon=True)

    def start(self, post: Callable[[list[Piece]], None]) -> None:
        """Begin to sample; `post` hands pieces to whoever asked."""
        self._post = post
        self._thread.start()

    def stop(self) -> None:
        """Refuse what is not finished; what the service is still sampling is given up."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def submit(self, rows: Sequence[Row]) -> None:
        """Take rows.

        Raises:
            Problem: if the engine has been stopped, or a row asks for what the service does not give.
        """
        if any(row.top_logprobs for row in rows):
            raise Problem(
                400,
                "a policy at a tinker service has no 'top_logprobs' (above 0, 'logprobs' of plain completions); "
                "leave it out",
                "top_logprobs",
                "unsupported_parameter",
            )
        with self._changed:
            if self._stopping:
                raise _stopped()
            self._waiting.extend(rows)
            self._changed.notify_all()

    def exclusively(self, work: Callable[[], T]) -> T:
        """What `work` gives, run when everything that was sent has come back; rows wait meanwhile."""
        with self._exclusive:
            with self._changed:
                self._held = True
                self._changed.wait_for(lambda: not self._busy)
            try:
                return work()
            finally:
                with self._changed:
                    self._held = False
                    self._changed.notify_all()

    def _run(self) -> None:
        while (events := self._next()) is not None:
            rows, answered = events
            for future in answered:
                self._receive(self._sent.pop(future), future)
            self._send(rows)
            for future, sent in self._sent.items():
                if all(row.cancelled for row in sent):
                    future.cancel()
        for future in list(self._sent):
            future.cancel()
        for row in [*(row for rows in self._sent.values() for row in rows), *self._waiting]:
            self._finish(row, "cancelled", _stopped())
        self._sent.clear()
        with self._changed:
            self._busy = False
            self._changed.notify_all()

    def _next(self) -> tuple[list[Row], list[Future[Any]]] | None:
        """The rows to send now, and the requests that have been answered; None: stop."""
        with self._changed:
            self._busy = bool(self._sent)
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._stopping or self._answered or (self._waiting and not self._held),
                timeout=LOOK_SECONDS if self._sent else None,
            )
            if self._stopping:
                return None
            rows: list[Row] = []
            if self._waiting and not self._held:
                self._gather()
                # While rows were gathered, somebody may have asked for the engine to be still.
                if not self._held:
                    rows = list(self._waiting)
                    self._waiting.clear()
            answered = list(self._answered)
            self._answered.clear()
            self._busy = bool(rows or self._sent)
            return rows, answered

    def _gather(self) -> None:
        deadline = time.monotonic() + GATHER_SECONDS
        while time.monotonic() < deadline and not self._stopping:
            waiting = len(self._waiting)
            self._changed.wait(QUIET_SECONDS)
            if len(self._waiting) == waiting:
                return

    def _send(self, rows: Sequence[Row]) -> None:
        requests: dict[object, list[Row]] = {}
        for row in rows:
            if row.cancelled:
                self._finish(row, "cancelled")
                continue
            row.begin(self.version, self._decode)
            # A row with a seed of its own is asked for alone, so that it can be asked for again.
            key = (row.prompt_ids, row.sampling) if row.sampling.seed is None else row
            requests.setdefault(key, []).append(row)
        for alike in requests.values():
            try:
                future = self.sampler.sample(alike[0].prompt_ids, len(alike), alike[0].sampling)
            except Exception as error:  # noqa: BLE001 - whatever it is, the rows' clients must hear of it
                self._refuse(alike, error)
                continue
            self._sent[future] = alike
            future.add_done_callback(self._note_answer)

    def _note_answer(self, future: Future[Any]) -> None:
        """Runs in the client's thread."""
        with self._changed:
            self._answered.append(future)
            self._changed.notify_all()

    def _receive(self, rows: Sequence[Row], future: Future[Any]) -> None:
        """Hand out what a request came to."""
        if future.cancelled():
            for row in rows:
                self._finish(row, "cancelled")
            return
        error = future.exception()
        if error is not None:
            self._refuse(rows, error)
            return
        sequences = list(future.result().sequences)
        for index, row in enumerate(rows):
            sequence = sequences[index] if index < len(sequences) else None
            if sequence is None or not sequence.tokens or len(sequence.logprobs or ()) != len(sequence.tokens):
                problem = Problem(502, "the tinker service gave no tokens with log-probabilities; ask again")
                self._finish(row, "cancelled", problem)
            else:
                reason = self._take_tokens(row, sequence.tokens, sequence.logprobs)
                self._finish(row, "cancelled" if row.cancelled else reason or sequence.stop_reason)

    def _take_tokens(self, row: Row, tokens: Sequence[int], logprobs: Sequence[float]) -> str | None:
        """Give a row its tokens up to where it ends; services differ in what they show after that."""
        for token, logprob in zip(tokens, logprobs, strict=True):
            reason = row.accept(token, logprob, self._end_tokens)
            if reason is not None:
                return reason
        return None

    def _refuse(self, rows: Sequence[Row], error: BaseException) -> None:
        status = 400 if is_of_the_request(error) else 502
        for row in rows:
            self._finish(row, "cancelled", Problem(status, f"the tinker service could not sample: {reason_of(error)}"))

    def _finish(self, row: Row, finish_reason: str, problem: Problem | None = None) -> None:
        """Record the row, then let its client see the end of it."""
        piece = row.end(finish_reason, self._decode, self._journal, problem)
        if piece.finish_reason not in (None, "cancelled"):
            self.completions_served += 1
        self._post([piece])


def _to_nobody(pieces: list[Piece]) -> None:
    """Where pieces go before anybody can have asked for them."""


def _stopped() -> Problem:
    return Problem(503, "the policy endpoint has been stopped; call it while it runs", code="stopped")
