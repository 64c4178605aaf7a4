"""Makes the embedded language model: a byte-level BPE tokenizer and a small Llama, pre-trained on text alone.

    python sweeps/pretrain_language_model.py --output rllava/assets/tiny-llama

Writes a folder in Hugging Face format and, beside the weights, ``training.json`` with what made them. Same arguments,
same versions and threads: same weights.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rllava.data.corpus import easy_corpus
from rllava.torchvision_shim import declare_missing_operators

declare_missing_operators()

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402


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
    width: int = 96
    layers: int = 3
    heads: int = 4
    steps: int = 400
    batch_size: int = 64
    learning_rate: float = 3e-3
    seed: int = 0


def train_tokenizer(lines: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every text can be encoded, every word of the corpus is one token.

    Args:
        lines: corpus.
        vocabulary: size.

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
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


def main(options: Options) -> None:
    """Trains and writes.

    Args:
        options: see :class:`Options`.
    """
    torch.manual_seed(options.seed)
    lines = easy_corpus()
    # Every text also with a blank before it, as answers stand; and the roles, often enough to be tokens of their own.
    spaced = [f" {line}" for line in lines]
    roles = ["USER: ASSISTANT:"] * len(lines)
    tokenizer = train_tokenizer([*lines, *spaced, *roles], options.vocabulary)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=options.width,
            intermediate_size=options.width * 8 // 3,
            num_hidden_layers=options.layers,
            num_attention_heads=options.heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    encoded = [
        [tokenizer.bos_token_id, *tokenizer(line, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for line in lines
    ]
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.learning_rate, total_steps=options.steps)
    order = torch.Generator().manual_seed(options.seed)
    started = time.time()
    loss = torch.tensor(0.0)
    for step in range(options.steps):
        rows = torch.randint(len(encoded), (options.batch_size,), generator=order).tolist()
        width = max(len(encoded[row]) for row in rows)
        ids_BT = torch.tensor([encoded[row] + [-100] * (width - len(encoded[row])) for row in rows])
        logits_BTV = model(input_ids=ids_BT.clamp(min=0)).logits
        loss = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten(), ignore_index=-100)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == options.steps - 1:
            print(f"step {step} of {options.steps}: loss {loss.item():.3f}, {time.time() - started:.0f} s", flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    facts = {**asdict(options), "output": options.output.name, "lines": len(lines), "final_loss": round(loss.item(), 4)}
    facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    (options.output / "training.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    print(f"written to {options.output}: {facts['parameters']} parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
