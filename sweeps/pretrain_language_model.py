"""Makes the embedded language model: a byte-level BPE tokenizer and a small Llama, pre-trained on text alone.

    python sweeps/pretrain_language_model.py --output rllava/assets/tiny-llama

Writes a folder in Hugging Face format and, beside the weights, ``training.json`` with what made them. Same arguments,
same versions and threads: same weights.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rllava.data.corpus import easy_corpus
from rllava.model.conversation import IGNORE, Piece, Tokens, tokenize
from rllava.torchvision_shim import declare_missing_operators

declare_missing_operators()

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

KINDS = ("plain text", "conversations")


@dataclass(frozen=True)
class Options:
    """How to make the embedded language model.

    Attributes:
        output: folder to write, in Hugging Face format.
        vocabulary: tokens, the 256 bytes included.
        width: of the residual stream.
        layers: transformer blocks.
        heads: attention heads.
        steps: optimiser steps.
        batch_size: lines per step.
        learning_rate: peak of AdamW's cosine schedule.
        seed: of initialisation and order.
    """

    output: Path = Path("rllava/assets/tiny-llama")
    vocabulary: int = 448
    width: int = 64
    layers: int = 3
    heads: int = 4
    steps: int = 3000
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every text can be encoded, every word of the corpus is one token.

    Returns:
        A fast tokenizer with Llama's special tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


def corpus_loss(model: Any, rows: list[Tokens]) -> torch.Tensor:
    """Mean cross-entropy of the labelled tokens.

    Args:
        rows: ids and labels of B lines.
    """
    width = max(len(row.ids) for row in rows)
    ids_BT = torch.tensor([[*row.ids, *[0] * (width - len(row.ids))] for row in rows])
    labels_BT = torch.tensor([[*row.labels, *[IGNORE] * (width - len(row.labels))] for row in rows])
    logits_BTV = model(input_ids=ids_BT).logits
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORE)


def main(options: Options) -> None:
    """Trains and writes.

    Args:
        options: see :class:`Options`.
    """
    torch.manual_seed(options.seed)
    lines = easy_corpus()
    texts = [line.prompt + line.text for line in lines]
    # Every text also with a blank before it, as answers stand; and the roles, often enough to be tokens of their own.
    tokenizer = train_tokenizer(
        [*texts, *(f" {text}" for text in texts), *["USER: ASSISTANT:"] * len(texts)], options.vocabulary
    )
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=options.width,
            intermediate_size=options.width * 8 // 3,
            num_hidden_layers=options.layers,
            num_attention_heads=options.heads,
            max_position_embeddings=512,
            # 0.02, made for widths in the thousands, leaves so narrow a model unable to read: it never learns to copy.
            initializer_range=options.width**-0.5,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # A prompt carries no loss, as in instruction tuning.
    encoded = [tokenize(tokenizer, [Piece(line.prompt), Piece(line.text, labelled=True, end=True)]) for line in lines]
    plain = [row for row, line in zip(encoded, lines, strict=True) if not line.prompt]
    conversations = [row for row, line in zip(encoded, lines, strict=True) if line.prompt]
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, options.learning_rate, total_steps=options.steps, pct_start=0.1
    )
    order = torch.Generator().manual_seed(options.seed)
    started = time.time()
    losses = [torch.tensor(0.0)]
    for step in range(options.steps):
        # Half of each batch from either kind, each kind's mean with the same weight: answers are few tokens.
        losses = [
            corpus_loss(model, [rows[row] for row in torch.randint(len(rows), (half,), generator=order).tolist()])
            for rows, half in ((plain, options.batch_size // 2), (conversations, options.batch_size // 2))
        ]
        optimiser.zero_grad(set_to_none=True)
        sum(losses, torch.tensor(0.0)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == options.steps - 1:
            values = ", ".join(f"{name} {loss.item():.3f}" for name, loss in zip(KINDS, losses, strict=True))
            print(f"step {step} of {options.steps}: loss of {values}; {time.time() - started:.0f} s", flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    facts = {name: value for name, value in asdict(options).items() if name != "output"} | {"lines": len(lines)}
    facts["final_loss"] = {name: round(loss.item(), 4) for name, loss in zip(KINDS, losses, strict=True)}
    facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    (options.output / "training.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    print(f"written to {options.output}: {facts['parameters']} parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
