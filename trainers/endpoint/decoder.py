"""The decode loop: one thread that gives every row its next token, over and over.

Between two tokens rows are admitted, finished rows leave their slot, and rows whose
client has left are let go. The model is the trainer's own object, so nothing is decoded
while the trainer holds it (`exclusive`), and nothing is trained while a row is active.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tracetune.trainers.endpoint.admission import Admission, prompt_of
from tracetune.trainers.endpoint.cache import RowCache
from tracetune.trainers.endpoint.mixing import BASE, AdapterMixing
from tracetune.trainers.endpoint.models import check_attention, decode_of, end_tokens
from tracetune.trainers.endpoint.prefixes import Prefixes, Prompt
from tracetune.trainers.endpoint.problems import Problem
from tracetune.trainers.endpoint.rows import Piece, Row
from tracetune.trainers.endpoint.sampling import Drawn, Sampler
from tracetune.types import Journal

T = TypeVar("T")

# Gives the adapter that a module's rows are decoded with; None: the model beneath the adapters.
AdapterOf = Callable[[str | None], str | None]

# Requests that come together are admitted together: while nothing is being decoded, the
# loop waits until none has come for a moment, and no longer than a few moments.
QUIET_SECONDS = 0.002
GATHER_SECONDS = 0.02


class Decoder:
    """Decodes rows of one model, in a thread of its own."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        version: str,
        journal: Journal,
        max_rows: int,
        cache_tokens: int,
        threads: int,
        adapter_of: AdapterOf | None = None,
    ) -> None:
        """Take a model.

        Args:
            model: shared with whoever trains it.
            tokenizer: its tokenizer.
            version: the version of its weights.
            journal: gets every finished row before its client does.
            max_rows: how many rows are decoded at once.
            cache_tokens: how many tokens' keys and values are held, a quarter of them for
                prompts that may be asked for again. Rows wait for room, and are paused
                and computed again later where they outgrow it; one row alone may exceed it.
            threads: how many threads torch may use for it.
            adapter_of: names the adapter of each row by its module; None: the model is
                used as it is.
        """
        check_attention(model)
        self.version = version
        self.completions_served = 0
        self._model = model
        self._decode = decode_of(tokenizer)
        self._end_tokens = end_tokens(model, tokenizer)
        self._journal = journal
        self._threads = threads
        self._post: Callable[[list[Piece]], None] = _to_nobody
        kept_tokens = cache_tokens // 4
        row_tokens = cache_tokens - kept_tokens
        self._queue = Admission(max_rows=max_rows, row_tokens=row_tokens)
        self._cache = RowCache(row_tokens)
        self._adapter_of = adapter_of
        self._mixing = AdapterMixing(model)
        self._prefixes = Prefixes(model, self._mixing, kept_tokens=kept_tokens)
        self._rows: list[Row] = []
        self._sampler: Sampler | None = None
        self._outbox: list[Piece] = []
        self._changed = threading.Condition()
        self._exclusive = threading.Lock()
        self._held = False
        self._busy = False
        self._stopping = False
        self._work: Callable[[], None] | None = None
        self._training_modules: list[torch.nn.Module] = []
        self._thread = threading.Thread(target=self._run, name="tracetune-decoder", daemon=True)

    def start(self, post: Callable[[list[Piece]], None]) -> None:
        """Start decoding, warm when this returns; `post` hands pieces to the event loop."""
        self._post = post
        self._to_eval_mode()
        self._busy = True
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)

    def stop(self) -> None:
        """Stop: rows that are not finished are recorded as cancelled and refused."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()
        self._to_own_mode()

    def submit(self, rows: Sequence[Row]) -> None:
        """Put rows in the queue.

        Raises:
            Problem: if the decoder has been stopped, or a row's module has no adapter.
        """
        with self._changed:
            if self._stopping:
                raise _stopped()
            for row in rows:
                row.adapter = self._adapter(row.module)
            self._queue.waiting.extend(rows)
            self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Have the model to oneself: active rows are finished first, waiting ones wait."""
        with self._exclusive:
            with self._changed:
                self._held = True
                self._changed.wait_for(lambda: not self._busy)
            self._prefixes.clear()
            self._cache.release()
            self._to_own_mode()
            try:
                yield
            finally:
                if self._thread.is_alive():
                    self._to_eval_mode()
                with self._changed:
                    self._held = False
                    for row in self._queue.waiting:  # its module may have an adapter now
                        row.adapter = self._adapter(row.module)
                    self._changed.notify_all()

    def exclusively(self, work: Callable[[], T]) -> T:
        """What `work` gives, run in the decode thread while it has the model to itself.

        Every thread that computes with torch has a pool of its own for it, and two pools on
        the same cores halve each other's speed: so heavy work goes where decoding is done.
        """
        with self.exclusive():
            if not self._thread.is_alive():
                return work()
            outcome: Future[T] = Future()

            def settle() -> None:
                try:
                    with torch.enable_grad():  # decoding is without
                        outcome.set_result(work())
                except BaseException as error:  # noqa: BLE001 - it is raised again where the outcome is awaited
                    outcome.set_exception(error)

            with self._changed:
                self._work = settle
                self._changed.notify_all()
            try:
                return outcome.result()
            finally:
                # An interrupt ends this wait, not the work, which must not go on behind its caller's back.
                wait([outcome])

    def _adapter(self, module: str | None) -> str | None:
        if self._adapter_of is None:
            return None
        adapter = self._adapter_of(module)
        if adapter is None:
            return BASE
        # Whoever holds the model may be adding it just now.
        if not self._held and not self._mixing.knows(adapter):
            raise Problem(
                500,
                f"module {module!r} is decoded with adapter {adapter!r}, which the model does not have; add it first",
            )
        return adapter

    def _to_eval_mode(self) -> None:
        self._training_modules = [module for module in self._model.modules() if module.training]
        self._model.eval()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        if self._adapter_of is not None:
            self._mixing.attach()

    def _to_own_mode(self) -> None:
        self._mixing.detach()
        for module in self._training_modules:
            module.training = True
        self._training_modules = []

    def _run(self) -> None:
        # OpenMP counts threads for each calling thread, so this must be said here.
        torch.set_num_threads(self._threads)
        # no_grad, not inference_mode: the trainer uses the same modules, and what they
        # keep between calls must not become an inference tensor.
        with torch.no_grad():
            self._warm_up()
            while (admitted := self._next_rows()) is not None:
                if self._work is not None:
                    work, self._work = self._work, None
                    work()
                try:
                    self._let_go()
                    if admitted:
                        self._admit(admitted)
                    if self._rows:
                        self._step()
                except Exception as error:  # noqa: BLE001 - whatever it is, the rows' clients must hear of it
                    self._fail([*self._rows, *admitted], error)
                self._send()
        for row in [*self._rows, *self._queue.paused, *self._queue.waiting]:
            self._finish(row, "cancelled", _stopped())
        self._send()
        with self._changed:
            self._busy = False
            self._changed.notify_all()

    def _warm_up(self) -> None:
        """Have the first passes of a process, which cost many times the others, before anybody waits for them."""
        with suppress(Exception):  # what is wrong with the model, the first request will tell
            self._cache.admit(self._prefixes.of([Prompt("", (0, 0))]))
            self._forward([0], [2], [None])
        self._prefixes.clear()
        self._cache.release()

    def _next_rows(self) -> list[Row] | None:
        """The rows to admit now, perhaps none; waits while there is nothing to do; None: stop."""
        with self._changed:
            if not self._rows and not self._queue.paused:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._stopping or self._work or (self._queue.waiting and not self._held))
                if not self._work:
                    self._gather()
            if self._stopping and self._work is None:
                return None
            rows = self._take()
            self._busy = bool(rows or self._rows or self._queue.paused)
            return rows

    def _gather(self) -> None:
        deadline = time.monotonic() + GATHER_SECONDS
        while len(self._queue.waiting) < self._queue.max_rows and time.monotonic() < deadline:
            waiting = len(self._queue.waiting)
            self._changed.wait(QUIET_SECONDS)
            if len(self._queue.waiting) == waiting:
                return

    def _take(self) -> list[Row]:
        rows, left = self._queue.take(self._rows, self._prefixes, held=self._held)
        for row in left:
            self._finish(row, "cancelled")
        return rows

    def _let_go(self) -> None:
        """Drop the active rows whose client has left."""
        left = [row for row in self._rows if row.cancelled]
        if left:
            for row in left:
                self._finish(row, "cancelled")
            self._keep([slot for slot, row in enumerate(self._rows) if not row.cancelled])

    def _admit(self, rows: list[Row]) -> None:
        """Prefill the rows' prompts, and what had been drawn of those that were paused, and draw their next tokens."""
        prefixes = self._prefixes.of([prompt_of(row) for row in rows])
        for row in rows:
            row.begin(self.version, self._decode)
        drawn = _sampler(rows).draw(torch.stack([prefix.logits_V for prefix in prefixes]))
        unfinished = self._accept(rows, drawn)
        if unfinished:
            self._cache.admit([prefixes[index] for index in unfinished])
            self._rows += [rows[index] for index in unfinished]
            self._sampler = _sampler(self._rows)

    def _step(self) -> None:
        """Draw one more token for every row."""
        kept = self._queue.pause(self._rows)
        if len(kept) < len(self._rows):
            self._keep(kept)
        tokens_B = [row.completion_ids[-1] for row in self._rows]
        positions = [row.position for row in self._rows]
        logits_BV = self._forward(tokens_B, positions, [row.adapter for row in self._rows])
        assert self._sampler is not None
        unfinished = self._accept(self._rows, self._sampler.draw(logits_BV))
        if len(unfinished) < len(self._rows):
            self._keep(unfinished)

    def _forward(self, tokens_B: list[int], positions: list[int], adapters: list[str | None]) -> torch.Tensor:
        """The logits after one more token a row, [rows, vocabulary]."""
        device = self._model.device
        positions_B = self._cache.place(positions)
        hidden_BT = torch.arange(self._cache.span, device=device) > positions_B[:, None]
        mask_BT = torch.zeros(hidden_BT.shape, dtype=self._model.dtype, device=device).masked_fill_(
            hidden_BT, -torch.inf
        )
        with self._mixing.rows(adapters):
            logits_BTV: torch.Tensor = self._model(
                input_ids=torch.tensor(tokens_B, device=device)[:, None],
                position_ids=positions_B[:, None],
                attention_mask=mask_BT[:, None, None],
                past_key_values=self._cache,
                use_cache=True,
            ).logits
        return logits_BTV[:, -1]

    def _accept(self, rows: Sequence[Row], drawn: Drawn) -> list[int]:
        """Give each row its token; gives the indices of those that go on."""
        unfinished = []
        for index, (row, token, logprob) in enumerate(zip(rows, drawn.tokens, drawn.logprobs, strict=True)):
            if row.top_logprobs:
                best = drawn.logprobs_BV[index].topk(row.top_logprobs)
                pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                # What was ruled out is no alternative, and its infinity no JSON.
                row.alternatives.append([pair for pair in pairs if pair[1] > -math.inf])
            if row.constraint is not None and row.constraint.failure is not None:
                message = f"the grammar of 'response_format' failed: {row.constraint.failure:.300}; simplify its schema"
                self._finish(row, "cancelled", Problem(400, message, "response_format"))
                continue
            finish_reason = row.accept(token, logprob, self._end_tokens)
            if finish_reason is not None:
                self._finish(row, finish_reason)
                continue
            unfinished.append(index)
            if (piece := row.piece()) is not None:
                self._outbox.append(piece)
        return unfinished

    def _keep(self, slots: Sequence[int]) -> None:
        self._rows = [self._rows[slot] for slot in self._cache.keep(slots)]
        self._sampler = _sampler(self._rows) if self._rows else None

    def _finish(self, row: Row, finish_reason: str, problem: Problem | None = None) -> None:
        """Record the row, then let its client see the end of it."""
        piece = row.end(finish_reason, self._decode, self._journal, problem)
        if piece.finish_reason not in (None, "cancelled"):
            self.completions_served += 1
        self._outbox.append(piece)

    def _fail(self, rows: Sequence[Row], error: Exception) -> None:
        problem = Problem(500, f"the model failed while decoding: {type(error).__name__}: {error}")
        finished = {piece.row for piece in self._outbox if piece.finish_reason or piece.problem}
        for row in dict.fromkeys(rows):
            if row not in finished:
                self._finish(row, "cancelled", problem)
        self._rows = []
        self._cache.release()

    def _send(self) -> None:
        if self._outbox:
            self._post(self._outbox)
            self._outbox = []


def _to_nobody(pieces: list[Piece]) -> None:
    """Where pieces go before anybody can have asked for them."""


def _stopped() -> Problem:
    return Problem(503, "the policy endpoint has been stopped; call it while it runs", code="stopped")


def _sampler(rows: Sequence[Row]) -> Sampler:
    return Sampler([row.sampling for row in rows], [row.source for row in rows], [row.constraint for row in rows])
