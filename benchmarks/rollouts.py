"""Rollouts through the policy endpoint against transformers' own two ways, same rows, same tokens.

    python benchmarks/rollouts.py --model PATH_OF_SMOLLM2

All sides decode the same prompts greedily, to exactly the same length (no token ends a
completion), in the same process and with the same threads: padded `generate`, continuous
batching (`generate_batch`), and the endpoint over HTTP, with the openai client. Their
completions are compared, row by row. Without `--model`, a model of SmolLM2-135M's shape
with random weights is used.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import openai
import torch
from tokenizers import Tokenizer, models
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from tracetune.trainers.endpoint import LocalEndpoint
from tracetune.trainers.models import load_model
from tracetune.types import Completion

Prompts = list[list[int]]
# Gives the completions of prompts, of so many tokens.
Side = Callable[[Prompts, int], list[list[int]]]


class Records:
    """Keeps the endpoint's completions, by response id."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}

    def completion(self, completion: Completion) -> None:
        """Keep one."""
        self.tokens[completion.response_id] = list(completion.completion_token_ids)

    def policy(self, *args: object, **kwargs: object) -> None:
        """Nothing is published here."""

    batch = job = policy


def random_model() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model of SmolLM2-135M's shape, with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    words = {f"w{index}": index for index in range(config.vocab_size)}
    return LlamaForCausalLM(config).eval(), PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words)))


def never_ending(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """No token ends a completion, on either side."""
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    tokenizer.eos_token = None


def generated(model: PreTrainedModel, prompts: Prompts, completion: int) -> list[list[int]]:
    """The completions of padded `generate`."""
    input_ids = torch.tensor(prompts)
    with torch.no_grad():
        rows = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=completion,
            do_sample=False,
            temperature=None,
            top_p=None,
            pad_token_id=0,
        )
    return rows[:, input_ids.shape[1] :].tolist()


def batched(model: PreTrainedModel, prompts: Prompts, completion: int) -> list[list[int]]:
    """The completions of transformers' continuous batching, which shares equal beginnings of prompts as well."""
    settings = GenerationConfig(max_new_tokens=completion, do_sample=False, eos_token_id=-1, pad_token_id=0)
    page = 32
    pages = sum((len(prompt) + completion) // page + 2 for prompt in prompts)
    memory = ContinuousBatchingConfig(page_size=page, num_blocks=pages, max_batch_tokens=2048)
    outputs = model.generate_batch(prompts, generation_config=settings, continuous_batching_config=memory)
    numbered = sorted(outputs.items(), key=lambda item: int(item[0].rpartition("_")[2]))
    refusals = {output.error for _, output in numbered if output.error}
    if refusals or len(numbered) < len(prompts):
        raise RuntimeError("; ".join(sorted(refusals)) or "rows are missing")
    return [list(output.generated_tokens) for _, output in numbered]


def served(client: openai.OpenAI, records: Records, prompts: Prompts, completion: int) -> list[list[int]]:
    """The completions of concurrent requests."""
    with ThreadPoolExecutor(len(prompts)) as pool:

        def ask(prompt: list[int]) -> str:
            return client.completions.create(model="policy", prompt=prompt, max_tokens=completion, temperature=0).id

        return [records.tokens[response_id] for response_id in pool.map(ask, prompts)]


def seconds(work: Side, prompts: Prompts, completion: int) -> tuple[float, list[list[int]]]:
    """How long it took, and what came of it."""
    start = time.perf_counter()
    rows = work(prompts, completion)
    return time.perf_counter() - start, rows


def main() -> None:
    """Measure, compare and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint folder, GGUF file or hub id; random weights by default")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--completion", type=int, default=32, help="tokens of a completion")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()

    disable_progress_bar()
    torch.set_num_threads(options.threads)
    model, tokenizer = load_model(options.model) if options.model else random_model()
    never_ending(model, tokenizer)
    source = random.Random(0)
    distinct = [
        [source.randrange(100, model.config.vocab_size) for _ in range(options.prompt)] for _ in range(options.rows)
    ]
    shapes = {"one prompt": ([distinct[0]] * options.rows, 2.0), "different prompts": (distinct, 1.0)}
    records = Records()
    print(f"{options.rows} rows, prompt {options.prompt}, completion {options.completion}, {options.threads} threads\n")
    print("| rows | generate (s) | generate_batch (s) | endpoint (s) | over generate | bar | same tokens |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with LocalEndpoint(model, tokenizer, version="0", journal=records, max_rows=options.rows) as endpoint:
        client = openai.OpenAI(base_url=endpoint.policy.base_url, api_key=endpoint.policy.api_key, max_retries=0)
        # transformers' sides run in the endpoint's own thread: torch computes at half its speed where two
        # threads have a pool each. As a training step does, they leave the endpoint with nothing prefilled.
        sides: dict[str, Side] = {
            "generate": lambda prompts, tokens: endpoint.exclusively(lambda: generated(model, prompts, tokens)),
            "generate_batch": lambda prompts, tokens: endpoint.exclusively(lambda: batched(model, prompts, tokens)),
            "endpoint": lambda prompts, tokens: served(client, records, prompts, tokens),
        }
        for name, (prompts, bar) in shapes.items():
            times: dict[str, list[float]] = {side: [] for side in sides}
            notes = {}
            for repeat in range(options.repeats + 1):
                # What the first pass of a side costs is nobody's: it makes one with little to do.
                asked, tokens = (prompts, options.completion) if repeat else (prompts[:1], 2)
                expected: list[list[int]] = []
                for side, work in sides.items():
                    if side in notes and notes[side] != "differ":
                        continue
                    try:
                        elapsed, rows = seconds(work, asked, tokens)
                    except Exception as error:  # noqa: BLE001 - what a side refuses belongs in the table
                        notes[side] = f"refused: {type(error).__name__}"
                        continue
                    expected = expected or rows
                    if rows != expected:
                        notes[side] = "differ"
                    if repeat:
                        times[side].append(elapsed)
            medians = {side: statistics.median(taken) if taken else float("nan") for side, taken in times.items()}
            ratio = medians["generate"] / medians["endpoint"]
            agreement = ", ".join(f"{side} {note}" for side, note in notes.items()) or "yes"
            columns = " | ".join(f"{medians[side]:.2f}" for side in sides)
            print(f"| {name} | {columns} | {ratio:.2f}x | {bar:g}x | {agreement} |", flush=True)


if __name__ == "__main__":
    main()
