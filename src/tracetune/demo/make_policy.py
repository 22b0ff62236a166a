"""Makes the bundled policy from nothing, on the CPU: `python -m tracetune.demo.make_policy OUT --seed 0`.

A Llama of 1.3 million parameters first learns the demo's task from right demonstrations, then
imitates a sloppy demonstrator for a while: so it can do the task, and mostly does not.
`docs/demo_policy.md` says what came of it, and `demonstrations` who it learned from.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tracetune.demo.demonstrations import CLEAN, SLOPPY, Demonstration, demonstrations
from tracetune.demo.small_llama import build_model, build_tokenizer
from tracetune.demo.task import examples

IGNORED = -100  # the target that transformers leaves out of the loss


def make_policy(
    folder: Path,
    *,
    seed: int = 0,
    clean_steps: int = 450,
    sloppy_steps: int = 60,
    batch_size: int = 12,
    n_questions: int = 20_000,
) -> None:
    """Train the policy and write it, with its tokenizer, as a folder that transformers loads.

    Args:
        folder: where to write; made if it is not there.
        seed: of the first weights and of everything that is drawn.
        clean_steps: steps of learning the task.
        sloppy_steps: steps of unlearning to do it well.
        batch_size: scenes a step, of eight prompts each.
        n_questions: how many sets of facts there are to draw scenes from.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    generator = random.Random(seed)  # noqa: S311 - nothing here is secret
    questions = examples("pretrain", n_questions, seed)
    for name, demonstrator, steps, rate in (
        ("clean", CLEAN, clean_steps, 2e-3),
        ("sloppy", SLOPPY, sloppy_steps, 1e-3),
    ):
        scenes = demonstrations(questions, demonstrator, generator)
        for step, loss in enumerate(train(model, tokenizer, scenes, steps, batch_size, rate), start=1):
            if step % 50 == 0:
                print(f"{name} step {step} of {steps}: loss {loss:.3f}", flush=True)
    model.bfloat16()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    scenes: Iterator[list[Demonstration]],
    steps: int,
    batch_size: int,
    peak: float,
) -> Iterator[float]:
    """Teach the completions of the scenes, a step at a time; gives each step's loss.

    The learning rate rises to `peak` over 30 steps and falls to nothing along a cosine.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = peak * min((step + 1) / 30, math.cos(math.pi / 2 * step / steps))
        batch = [pack([encode(tokenizer, demonstration) for demonstration in next(scenes)]) for _ in range(batch_size)]
        tokens_BT = pad_sequence([row.tokens for row in batch], batch_first=True)
        sees = torch.eye(tokens_BT.shape[1], dtype=torch.bool).repeat(batch_size, 1, 1)
        for row, scene in enumerate(batch):
            sees[row, : len(scene.tokens), : len(scene.tokens)] = scene.sees()
        loss = model(
            input_ids=tokens_BT,
            position_ids=pad_sequence([row.positions for row in batch], batch_first=True),
            attention_mask=torch.where(sees, 0.0, torch.finfo(torch.float32).min)[:, None],
            labels=pad_sequence([row.targets for row in batch], batch_first=True, padding_value=IGNORED),
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield loss.item()


class Scene(NamedTuple):
    """Several prompts and completions in one sequence; what the prompts begin with stands there once.

    `segments` is 0 for the common beginning and counts the prompts from 1.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    segments: torch.Tensor

    def sees(self) -> torch.Tensor:
        """Which token may look at which: back at the common beginning and at its own segment."""
        return ((self.segments[:, None] == self.segments) | (self.segments == 0)).tril()


def pack(pairs: list[tuple[list[int], list[int]]]) -> Scene:
    """A scene of the tokens of prompts and completions; the completions are the targets."""
    prompts = [prompt for prompt, _ in pairs]
    # The last token of a prompt predicts the first of its completion, so it must be the prompt's own.
    common = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False))
    shared = min(len(list(common)), min(map(len, prompts)) - 1)
    tokens, positions, targets, segments = prompts[0][:shared], [*range(shared)], [IGNORED] * shared, [0] * shared
    for segment, (prompt, completion) in enumerate(pairs, start=1):
        own = prompt[shared:]
        tokens += own + completion
        positions += range(shared, len(prompt) + len(completion))
        targets += [IGNORED] * len(own) + completion
        segments += [segment] * len(own + completion)
    return Scene(*(torch.tensor(column) for column in (tokens, positions, targets, segments)))


def encode(tokenizer: PreTrainedTokenizerFast, demonstration: Demonstration) -> tuple[list[int], list[int]]:
    """The tokens of a prompt, through the chat template as an endpoint sends it, and of what should follow."""
    messages = [{"role": "user", "content": demonstration.prompt}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(prompt), tokenizer.encode(f"{demonstration.completion} {tokenizer.eos_token}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make the demo's policy from nothing, on the CPU.")
    parser.add_argument("folder", type=Path, help="where to write it")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_policy(arguments.folder, seed=arguments.seed)


if __name__ == "__main__":
    main()
