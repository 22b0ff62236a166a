"""What is taken from inside TRL, held against the installed version: a change there fails here by name."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import trl
from transformers import Trainer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

# Each with the parameters that it is called with here, in their order where that matters.
USED: list[tuple[Any, str, tuple[str, ...]]] = [
    (GRPOTrainer, "_prepare_inputs", ("self", "generation_batch")),
    (GRPOTrainer, "_compute_loss", ("self", "model", "inputs")),
    (
        GRPOTrainer,
        "_get_per_token_logps_and_entropies",
        ("self", "model", "input_ids", "attention_mask", "logits_to_keep"),
    ),
    (GRPOTrainer, "training_step", ("self", "model", "inputs", "num_items_in_batch")),
    *((kind, "_send_telemetry", ("self",)) for kind in (GRPOTrainer, DPOTrainer, KTOTrainer, SFTTrainer)),
    (Trainer, "_prepare_inputs", ("self", "inputs")),
    (Trainer, "training_step", ("self", "model", "inputs", "num_items_in_batch")),
    *((kind, "compute_loss", ("self", "model", "inputs")) for kind in (DPOTrainer, KTOTrainer, SFTTrainer)),
    *(
        (kind, "__init__", ("self", "model", "args", "train_dataset", "processing_class", "optimizers"))
        for kind in (GRPOTrainer, DPOTrainer, KTOTrainer, SFTTrainer)
    ),
]


@pytest.mark.parametrize(("kind", "name", "parameters"), USED, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_method_that_is_overridden_or_called_has_the_parameters_it_had(kind, name, parameters):
    """The method is there and takes these, in this order; else trainers/trl has to follow the new version."""
    method = getattr(kind, name, None)
    assert method is not None, f"{kind.__name__}.{name} is gone from trl {trl.__version__}"
    present = list(inspect.signature(method).parameters)
    assert [one for one in present if one in parameters] == list(parameters), (
        f"{kind.__name__}.{name} of trl {trl.__version__} takes {present}"
    )


def test_what_the_losses_read_is_what_they_are_given():
    """TRL's loss weighs by `tool_mask`, divides by `num_items_in_batch`, and reads these inputs and no other."""
    source = inspect.getsource(GRPOTrainer._compute_loss)
    for text in (
        'mask = completion_mask if "tool_mask" not in inputs else completion_mask * inputs["tool_mask"]',
        'normalizer = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes',
        'if self.loss_type == "cispo":',
        "self.epsilon_high",
        "self.importance_sampling_level",
        'inputs["ref_per_token_logps"]',
        'inputs.get("old_per_token_logps")',
    ):
        assert text in source, f"GRPOTrainer._compute_loss of trl {trl.__version__} has no {text}"


def test_helpers_and_arguments_are_there():
    """The fused head takes a temperature and outputs, and each configuration the arguments that are set."""
    assert {"temperature", "outputs"} <= inspect.signature(add_fused_lm_head).parameters.keys()
    assert "model" in inspect.signature(disable_dropout_in_model).parameters
    common = {
        "output_dir",
        "gradient_checkpointing",
        "bf16",
        "use_cpu",
        "seed",
        "per_device_train_batch_size",
        "report_to",
    }
    grpo = {"loss_type", "beta", "epsilon", "use_bias_correction_kl", "num_generations"}
    for config, names in (
        (GRPOConfig, grpo),
        (DPOConfig, {"beta"}),
        (KTOConfig, {"beta"}),
        (SFTConfig, {"max_length"}),
    ):
        missing = (common | names) - inspect.signature(config).parameters.keys()
        assert not missing, f"{config.__name__} of trl {trl.__version__} has no {sorted(missing)}"
