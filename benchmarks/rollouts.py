"""Rollouts through the policy endpoint against transformers' padded `generate`, same rows, same tokens.

    python benchmarks/rollouts.py --model PATH_OF_SMOLLM2

Both sides decode the same prompts greedily, to exactly the same length (no token ends a
completion), in the same process and with the same threads; the endpoint does so over
HTTP, with the openai client. The completions of both sides are compared, row by row.
Without `--model`, a model of SmolLM2-135M's shape with random weights is used.
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
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from tracetune.trainers.endpoint import LocalEndpoint
from tracetune.trainers.models import load_model
from tracetune.types import Completion

Prompts = list[list[int]]


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


def served(client: openai.OpenAI, records: Records, prompts: Prompts, completion: int) -> list[list[int]]:
    """The completions of concurrent requests."""
    with ThreadPoolExecutor(len(prompts)) as pool:

        def ask(prompt: list[int]) -> str:
            return client.completions.create(model="policy", prompt=prompt, max_tokens=completion, temperature=0).id

        return [records.tokens[response_id] for response_id in pool.map(ask, prompts)]


def seconds(work: Callable[[], list[list[int]]]) -> tuple[float, list[list[int]]]:
    """How long it took, and what came of it."""
    start = time.perf_counter()
    rows = work()
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
    print("| rows | generate (s) | endpoint (s) | faster | bar | same tokens |")
    print("| --- | --- | --- | --- | --- | --- |")
    with LocalEndpoint(model, tokenizer, version="0", journal=records, max_rows=options.rows) as endpoint:
        client = openai.OpenAI(base_url=endpoint.policy.base_url, api_key=endpoint.policy.api_key, max_retries=0)

        def generate(prompts: Prompts, completion: int) -> list[list[int]]:
            # In the endpoint's own thread: torch computes at half its speed where two threads have a pool each.
            return endpoint.exclusively(lambda: generated(model, prompts, completion))

        generate(distinct[:1], 2)  # what the first pass of a process costs is neither side's
        for name, (prompts, bar) in shapes.items():
            times: dict[str, list[float]] = {"generate": [], "endpoint": []}
            same = True
            for _ in range(options.repeats):
                # As a training step does, it leaves the endpoint with nothing that was prefilled before.
                elapsed, expected = seconds(lambda prompts=prompts: generate(prompts, options.completion))
                times["generate"].append(elapsed)
                elapsed, rows = seconds(lambda prompts=prompts: served(client, records, prompts, options.completion))
                times["endpoint"].append(elapsed)
                same = same and rows == expected
            by_generate, through_http = (statistics.median(times[side]) for side in ("generate", "endpoint"))
            ratio = by_generate / through_http
            agreement = "yes" if same else "NO"
            print(f"| {name} | {by_generate:.2f} | {through_http:.2f} | {ratio:.2f}x | {bar:g}x | {agreement} |")


if __name__ == "__main__":
    main()
