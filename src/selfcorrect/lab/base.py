"""Building and training the lab's base model (recipes/lab_base.yaml).

A Llama of a million parameters with a tokenizer that has one token for each number, so an attempt is a
dozen tokens. The result is an ordinary folder of Hugging Face layout. Axes: B problems, T tokens.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfcorrect.config import LabBaseConfig
from selfcorrect.errors import ConfigError
from selfcorrect.lab.corpus import draw_attempts
from selfcorrect.models.building import building
from selfcorrect.models.loading import pick_device, pick_dtype, wrap
from selfcorrect.runs.checkpoint import atomic_folder
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks.countdown import split_of
from selfcorrect.tasks.countdown_generator import OPERATORS, BoolArray, Draws, IntArray, draw_problems

PAD, USER, ASSISTANT, END, UNKNOWN = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>", "<|unk|>"
PROMPT, CORRECTION = "{numbers} : {target}", "?"  # the task's templates when this model reads it
_REMARKS = ("keep", "change", "right", "wrong")
_WORDS = [*OPERATORS, "=", "\n", ":", CORRECTION, *_REMARKS, PAD, USER, ASSISTANT, END, UNKNOWN]
_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|user|>' if message.role == 'user' else '<|assistant|>' }}{{ message.content }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Periods of the sine and cosine features the number embeddings start from: arithmetic is found several times sooner.
_PERIODS = (2, 3, 4, 5, 7, 8, 10, 13, 16, 20, 25, 32, 40, 50, 64, 80, 100, 128, 160, 200, 256, 400)


def build_tokenizer(limit: int) -> Any:
    """A word-level tokenizer with one token for each of 0..limit and the signs of an answer."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*map(str, range(limit + 1)), *_WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), "isolated"),
            pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed"),
        ]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT], clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.chat_template = _TEMPLATE
    return fast


def build_model(config: LabBaseConfig, tokenizer: Any) -> Any:
    """A Llama with tied embeddings, from the recipe's sizes and seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=config.hidden_size, num_hidden_layers=config.layers,
        num_attention_heads=config.heads, num_key_value_heads=config.heads,
        intermediate_size=config.hidden_size * 11 // 4 // 16 * 16, max_position_embeddings=512,
        tie_word_embeddings=True, attn_implementation="eager", bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with building():  # no other thread draws from torch's own numbers, either
        torch.manual_seed(derive_seed(config.seed, "lab_base", "init"))
        model = LlamaForCausalLM(llama)
    with torch.no_grad():
        numbers = model.get_input_embeddings().weight[: config.task.limit + 1]
        angles = 2 * math.pi * torch.arange(len(numbers))[:, None] / torch.tensor(_PERIODS, dtype=torch.float32)
        features = 0.04 * torch.cat([angles.sin(), angles.cos()], dim=1)[:, : config.hidden_size]
        numbers[:, : features.shape[1]] = features
    return model


def make_optimizers(model: Any, config: LabBaseConfig) -> list[tuple[torch.optim.Optimizer, float]]:
    """Optimisers and their peak rates: Muon for the layers' matrices (half of AdamW's steps), AdamW for the rest."""
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    muon = torch.optim.Muon(matrices, lr=0.0, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=0.0, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    return [(muon, config.matrix_learning_rate), (adamw, config.learning_rate)]


def draw_corpus(rng: np.random.Generator, config: LabBaseConfig, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """About `batch` training conversations: token ids [B, T] and which of them the model learns to write [B, T].

    Problems of the test split never enter. Every conversation has the same length.
    """
    draws = _training_split(draw_problems(rng, config.batch * 10 // 9, config.task.max_number, config.task.limit))
    first_B, second_B = draw_attempts(rng, draws, config)
    rows = np.arange(len(first_B))
    word = {text: tokenizer.convert_tokens_to_ids(text) for text in _WORDS}

    def column(text: str) -> IntArray:
        return np.full((len(rows), 1), word[text])

    def attempt(index_B: IntArray) -> IntArray:
        x, op1, y, r, u, op2, v, s = (part[:, None] for part in draws.candidates.steps_BC8[rows, index_B].T)
        signs = np.array([word[sign] for sign in OPERATORS])
        equals = column("=")
        return np.hstack([x, signs[op1], y, equals, r, column("\n"), u, signs[op2], v, equals, s, column(END)])

    def either(yes_B: BoolArray, yes: str, no: str) -> IntArray:
        return np.where(yes_B[:, None], column(yes), column(no))

    opening = [column(USER), draws.numbers_B3, column(":"), draws.target_B[:, None], column(END), column(ASSISTANT)]
    question = [column(USER), column(CORRECTION), column(END), column(ASSISTANT)]
    verdict = either(draws.solved_BC[rows, first_B], "right", "wrong")
    decision = either(second_B == first_B, "keep", "change")
    second = [verdict, decision, column("\n"), attempt(second_B)]
    pieces = [np.hstack(opening), attempt(first_B), np.hstack(question), np.hstack(second)]
    learned = np.hstack([np.full(piece.shape, number % 2 == 1) for number, piece in enumerate(pieces)])
    return torch.from_numpy(np.hstack(pieces)), torch.from_numpy(learned)


def train_base(config: LabBaseConfig, say: Callable[[str], None] = print) -> Path:
    """Train the base model of a recipe and save it as a folder; returns the folder. Same recipe, same model.

    Raises ConfigError where the folder is there already.
    """
    folder = Path(config.output)
    if folder.exists():
        raise ConfigError(f"output = {str(folder)!r} is there already; remove it, or choose another output=...")
    if config.threads:
        torch.set_num_threads(config.threads)
    tokenizer = build_tokenizer(config.task.limit)
    device = pick_device(config.device)
    model = build_model(config, tokenizer).to(device)
    lm = wrap(model, tokenizer, pick_dtype("auto", device))
    optimizers = make_optimizers(model, config)
    rng = np.random.default_rng(derive_seed(config.seed, "lab_base", "corpus"))
    began = time.monotonic()
    for step in range(config.steps):
        warm = min(1.0, (step + 1) / 200)
        share = warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))
        ids_BT, learned_BT = (table.to(device) for table in draw_corpus(rng, config, tokenizer))
        logits_NV = lm.logits(ids_BT[:, :-1], learned_BT[:, 1:], use_cache=False)
        loss = torch.nn.functional.cross_entropy(logits_NV, ids_BT[:, 1:][learned_BT[:, 1:]])
        model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in optimizers:
            optimizer.param_groups[0]["lr"] = peak * share
            optimizer.step()
        if (step + 1) % 250 == 0:
            say(f"step {step + 1}/{config.steps}  loss {loss.item():.4f}  {time.monotonic() - began:.0f} s")
    with atomic_folder(folder) as temporary:
        lm.save(temporary, torch.bfloat16)
        made_from = config.model_dump(mode="json", exclude={"output", "threads", "device"})
        (temporary / "recipe.json").write_text(json.dumps(made_from, indent=1) + "\n")
    return folder


def _training_split(draws: Draws) -> Draws:
    rows = zip(draws.numbers_B3.tolist(), draws.target_B.tolist(), strict=True)
    return draws.at(np.array([split_of(tuple(numbers), target) == "train" for numbers, target in rows]))
