"""One training step of the local trainer against TRL's GRPOTrainer, on the same groups.

Both sides start from the same weights, get the same tokens, advantages and old
log-probabilities, and do a whole step: loss, gradients, clipping their norm, AdamW. The
gradients of the first step are compared before anything is timed. TRL runs its own
`_compute_loss` as its defaults have it; the ratio and its bar are held against that. One
of these defaults, gradient checkpointing, trades time for memory: the last column has
the ratio with it turned off.

Memory is what a step needs beyond what its side held before: the peak of the resident set
during the first step, each side in a process of its own (Linux tells it; elsewhere there is
no figure).

    python benchmarks/train_step.py
    python benchmarks/train_step.py --hidden 64 --layers 2 --vocabulary 512 --scale 0.25 --repeats 1
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from tracetune.trainers.local import LocalTrainer
from tracetune.types import Group, GroupBatch, Member, Sampling

LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class Shape:
    """A group of completions, and how many times faster than TRL its step has to be."""

    prompt: int
    completion: int
    prompts: int
    bar: float


SHAPES = (Shape(256, 32, 1, 8.0), Shape(256, 32, 12, 2.0), Shape(32, 256, 1, 1.3))


def main() -> None:
    """Time all shapes and print the table."""
    options = arguments()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    if options.memory_of:
        side, place = options.memory_of.split("/")
        print(json.dumps(peak_of_a_step(side, SHAPES[int(place)], options)))
        return
    print(
        f"{sum(weight.numel() for weight in make_model(options).parameters()) / 1e6:.1f}M Llama, LoRA r 16, "
        f"{options.members} completions, {options.threads} threads, median of {options.repeats}\n"
    )
    print(
        "| prompt / completion | TRL | tracetune | ratio | bar | gradients | peak memory, TRL | tracetune "
        "| ratio without checkpointing |"
    )
    print("| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: |")
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(shape, options, Path(folder)), flush=True)


def arguments() -> argparse.Namespace:
    """Sizes, so that a smoke run is quick."""
    parser = argparse.ArgumentParser(description="A training step against TRL's GRPOTrainer.")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32000, help="Llama's own by default")
    parser.add_argument("--members", type=int, default=12)
    parser.add_argument("--scale", type=float, default=1.0, help="of the lengths of prompts and completions")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(shape: Shape, options: argparse.Namespace, folder: Path) -> str:
    """One row of the table: both sides in turn."""
    group = make_group(shape, options)
    ours = our_trainer(options)
    theirs = {checkpointing: trl_trainer(options, folder, ours, checkpointing) for checkpointing in (True, False)}
    inputs = trl_inputs(group)
    batch = GroupBatch([group])

    agreement = compare_gradients(ours, theirs[False], batch, inputs, folder)
    sides: dict[str, Callable[[], object]] = {
        "TRL": lambda: trl_step(theirs[True], inputs),
        "plain": lambda: trl_step(theirs[False], inputs),
        "ours": lambda: ours.step(batch),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(options.repeats):
        for side, run in sides.items():
            started = time.perf_counter()
            run()
            seconds[side].append(time.perf_counter() - started)
    median = {side: statistics.median(times) for side, times in seconds.items()}
    peaks = [memory_in_a_process(side, shape) for side in ("TRL", "ours")]
    name = f"{shape.prompt} / {shape.completion}, " + (
        "one prompt" if shape.prompts == 1 else f"{shape.prompts} prompts"
    )
    return (
        f"| {name} | {median['TRL']:.2f} s | {median['ours']:.2f} s | {median['TRL'] / median['ours']:.1f}x "
        f"| {shape.bar:g}x | {agreement} | {peaks[0]} | {peaks[1]} | {median['plain'] / median['ours']:.1f}x |"
    )


def memory_in_a_process(side: str, shape: Shape) -> str:
    """What a step of one side needs, measured by a fresh process with our own arguments."""
    arguments = [*sys.argv[1:], "--memory-of", f"{side}/{SHAPES.index(shape)}"]
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    peak = json.loads(done.stdout.splitlines()[-1])
    return "not known here" if peak is None else f"{peak:.0f} MB"


def peak_of_a_step(side: str, shape: Shape, options: argparse.Namespace) -> float | None:
    """MB of the resident set that a first step has at its peak, beyond what was there before it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None

    def megabytes(name: str) -> float:
        (line,) = (line for line in status.read_text().splitlines() if line.startswith(f"{name}:"))
        return int(line.split()[1]) / 1024

    group = make_group(shape, options)
    ours = our_trainer(options)
    with tempfile.TemporaryDirectory() as folder:
        if side == "ours":
            run, batch = ours.step, GroupBatch([group])
        else:
            theirs = trl_trainer(options, Path(folder), ours, checkpointing=True)
            del ours
            run, batch = partial(trl_step, theirs), trl_inputs(group)
        gc.collect()
        # From here on the peak is that of what follows, not of what made the models.
        Path("/proc/self/clear_refs").write_text("5")
        before = megabytes("VmRSS")
        run(batch)
        return megabytes("VmHWM") - before


def our_trainer(options: argparse.Namespace) -> LocalTrainer:
    """The local trainer, with the defaults of both."""
    return LocalTrainer(
        (make_model(options), make_tokenizer(options)),
        learning_rate=LEARNING_RATE,
        max_grad_norm=1.0,
        threads=options.threads,
    )


def make_model(options: argparse.Namespace) -> LlamaForCausalLM:
    """A random Llama, the same one each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, options.hidden // 64),
        num_key_value_heads=max(1, options.hidden // 128),
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def make_tokenizer(options: argparse.Namespace) -> PreTrainedTokenizerFast:
    """TRL asks for one; the groups come as tokens."""
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(options.vocabulary)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", unk_token="w0")


def make_group(shape: Shape, options: argparse.Namespace) -> Group:
    """Random completions with the model's own log-probabilities, a little moved."""
    random = torch.Generator().manual_seed(1)
    prompt, completion = int(shape.prompt * options.scale), int(shape.completion * options.scale)
    prompts = torch.randint(2, options.vocabulary, (shape.prompts, prompt), generator=random)
    prompts = prompts.expand(options.members, prompt) if shape.prompts == 1 else prompts
    completions = torch.randint(2, options.vocabulary, (options.members, completion), generator=random)
    model = make_model(options)
    with torch.inference_mode():
        logits = model(torch.cat([prompts[: len(completions)], completions], 1), logits_to_keep=completion + 1).logits
    logprobs = logits[:, :-1].log_softmax(-1).gather(2, completions[..., None])[..., 0]
    logprobs = logprobs + 0.1 * torch.randn(logprobs.shape, generator=random)
    members = [
        Member(
            call_id=f"call-{slot}",
            rollout_id=f"rollout-{slot}",
            module="answer",
            messages=(),
            prompt_ids=prompts[slot].tolist(),
            completion_ids=completions[slot].tolist(),
            logprobs=logprobs[slot].tolist(),
            text="",
            finish_reason="stop",
            sampling=Sampling(temperature=1.0),
            policy_version="run@0",
            reward=float(slot),
            advantage=slot - (options.members - 1) / 2,
        )
        for slot in range(options.members)
    ]
    return Group({"module": "answer"}, members)


def trl_trainer(options: argparse.Namespace, folder: Path, ours: LocalTrainer, checkpointing: bool) -> GRPOTrainer:
    """TRL's trainer, its adapter the same as ours."""
    trainer = GRPOTrainer(
        model=make_model(options),
        reward_funcs=lambda completions, **rest: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            num_generations=2,
            learning_rate=LEARNING_RATE,
            beta=0.0,
            loss_type="grpo",
            gradient_checkpointing=checkpointing,
            bf16=False,
            use_cpu=True,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{"prompt": "w1"}] * 2),
        processing_class=make_tokenizer(options),
        peft_config=LoraConfig(r=16, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    # What `train()` does before its first step.
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    if checkpointing:
        trainer.model.gradient_checkpointing_enable()
    learned = dict(ours.model.named_parameters())
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if weight.requires_grad:
                weight.copy_(learned[name])
    trainer.optimizer = torch.optim.AdamW(learning(trainer), lr=LEARNING_RATE, weight_decay=0.0)
    return trainer


def learning(trainer: GRPOTrainer) -> list[torch.nn.Parameter]:
    """The weights of the adapter."""
    return [weight for weight in trainer.model.parameters() if weight.requires_grad]


def trl_inputs(group: Group) -> dict[str, torch.Tensor]:
    """The group as TRL's loss receives it."""
    prompts = torch.tensor([list(member.prompt_ids or ()) for member in group.members])
    completions = torch.tensor([list(member.completion_ids or ()) for member in group.members])
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": torch.tensor([member.advantage for member in group.members]),
        "old_per_token_logps": torch.tensor([list(member.logprobs or ()) for member in group.members]),
    }


def trl_step(trainer: GRPOTrainer, inputs: dict[str, torch.Tensor]) -> None:
    """A whole step, as its training loop makes it."""
    trl_gradients(trainer, inputs)
    torch.nn.utils.clip_grad_norm_(learning(trainer), 1.0)
    trainer.optimizer.step()


def trl_gradients(trainer: GRPOTrainer, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Loss and gradients."""
    trainer.optimizer.zero_grad()
    trainer._compute_loss(trainer.model, inputs).backward()
    return {name: weight.grad for name, weight in trainer.model.named_parameters() if weight.requires_grad}


def compare_gradients(
    ours: LocalTrainer, theirs: GRPOTrainer, batch: GroupBatch, inputs: dict[str, torch.Tensor], folder: Path
) -> str:
    """How far our first step's gradients are from TRL's, of the largest; AdamW's first moment is a tenth of them."""
    expected = trl_gradients(theirs, inputs)
    norm = ours.step(batch).grad_norm
    ours.save(folder / "ours")
    moments = load_file(folder / "ours" / "optimizer.safetensors")
    # The moments are of gradients scaled down to norm 1.
    scale = 0.1 * min(1.0, 1.0 / norm)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    apart = max(
        float((moments[f"{name}.exp_avg"] / scale - gradient).abs().max()) for name, gradient in expected.items()
    )
    return f"{'equal' if apart < 1e-4 * largest else 'DIFFERENT'} to {apart / largest:.0e}"


if __name__ == "__main__":
    main()
