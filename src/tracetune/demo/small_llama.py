"""The bundled policy's tokenizer and its first weights.

Looking something up in the context is hard to find by gradient from a plain random
initialisation, so the beginning is arranged for it, and is nothing more than a beginning:

- one channel of every embedding holds the same constant. From it, two heads of the first
  layer make queries and keys that peak, under rotary positions, one and two places back:
  every word then knows the two words before it;
- three heads of the second layer compare just that: they attend from a `?` after
  `ann friend` to a word after another `ann friend`;
- in all later layers keys begin as queries do, so that what is alike attends to each
  other, and output projections as value projections transposed, so that what was found
  is written where it was read.
"""

from __future__ import annotations

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaAttention

from tracetune.demo.program import answer_prompt, hop_prompt
from tracetune.demo.task import NAMES, RELATIONS

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} "
    "{% if message['role'] == 'assistant' %}</s> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

WIDTH = 160
HEADS = 5
HEAD_WIDTH = WIDTH // HEADS
LOOK_BACK = (1, 2)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, for the words of the task and of the program's prompts."""
    marks = ["<pad>", "<unk>", "</s>", "<system>", "<user>", "<assistant>", "\n"]
    prompts = f"{hop_prompt('', 'ann friend', ['ann'])} {answer_prompt('ann', [])} the answer is more done"
    words = sorted({*prompts.split(), *RELATIONS, *NAMES})
    vocabulary = {word: index for index, word in enumerate([*marks, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106 - a word, no password
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\S+"), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<pad>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        additional_special_tokens=["<system>", "<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=256,
        padding_side="left",
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of 1.3 million parameters with the arranged beginning that this file's first paragraph describes."""
    marks = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
        intermediate_size=432,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=None,
        **marks,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**marks)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        embeddings = model.model.embed_tokens.weight
        embeddings.normal_(std=0.25)
        embeddings[:, 0] = 1.0
        first, *later = [layer.self_attn for layer in model.model.layers]
        for head, places in enumerate(LOOK_BACK):
            _look_back(first, head, places)
        for attention in later:
            attention.q_proj.weight.normal_(std=0.08)
            attention.v_proj.weight.normal_(std=0.08)
        _compare(later[0], first)
        for attention in later:
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.o_proj.weight.copy_(attention.v_proj.weight.T)
    return model


def _rows(head: int) -> slice:
    return slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)


def _look_back(attention: LlamaAttention, head: int, places: int) -> None:
    """Make one head attend some places back, from the constant channel alone."""
    half = HEAD_WIDTH // 2
    fast = half // 2  # the slower rotations turn too little to tell neighbours apart
    angles = places * 10_000.0 ** (-torch.arange(fast) / half)
    query, key = torch.zeros(HEAD_WIDTH), torch.zeros(HEAD_WIDTH)
    query[:fast] = 1.5
    key[:fast] = 1.5 * angles.cos()
    key[half : half + fast] = 1.5 * angles.sin()
    for weight, column in ((attention.q_proj.weight, query), (attention.k_proj.weight, key)):
        weight[_rows(head)] = 0.0
        weight[_rows(head), 0] = column
    attention.v_proj.weight[_rows(head)].normal_(std=0.06)
    attention.v_proj.weight[_rows(head), 0] = 0.0
    attention.o_proj.weight[:, _rows(head)].normal_(std=0.06)


def _compare(attention: LlamaAttention, first: LlamaAttention) -> None:
    """Make three heads ask for what the looking-back heads of the first layer wrote."""
    written = torch.stack([first.o_proj.weight[:, _rows(head)] for head in range(len(LOOK_BACK))]).sum(0)
    for head in range(3):
        turned, _ = torch.linalg.qr(torch.randn(HEAD_WIDTH, HEAD_WIDTH))
        attention.q_proj.weight[_rows(head)] = 0.7 * turned @ written.T
