"""Writes tokenizer/: a small tokenizer with Llama's rules and a vocabulary of our own.

    python -m tests.golden.llava.make_tokenizer

Llama's rules: byte-pair merges by rank of the merged piece, as sentencepiece does; unknown characters as bytes; "▁" for
a blank, one in front of a text; runs of blanks as pieces that are merged last; digits one by one. As in Llama's
vocabulary "USER" is one token and "▁USER" two: LLaVA's count of tokens relies on it.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rllava.data.corpus import easy_corpus
from rllava.model.conversation import TEMPLATES, pieces
from tests.golden.llava.awkward import CONVERSATIONS

FOLDER = Path(__file__).with_name("tokenizer")
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
BLANKS = ["▁▁", "▁▁▁▁"]
MERGED = 500
ASCII = [chr(code) for code in range(0x21, 0x7F)]


def trained_pieces() -> list[str]:
    """Pieces of at least two characters, in the order of their merges."""
    texts = [line.prompt + line.text for line in easy_corpus()[::50]]
    for name in ("vicuna_v1", "llava_llama_2"):
        for rounds in CONVERSATIONS.values():
            texts += [piece.text for piece in pieces(TEMPLATES.get(name), rounds)]
    trainer = trainers.BpeTrainer(
        vocab_size=MERGED + len(ASCII) + 1, initial_alphabet=["▁", *ASCII], show_progress=False
    )
    trainer.limit_alphabet = len(ASCII) + 1
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Punctuation("contiguous"),
        ]
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = tokenizer.get_vocab()
    by_rank = sorted(vocabulary, key=lambda piece: vocabulary[piece])
    return [piece for piece in by_rank if len(piece) > 1 and not piece.startswith("▁U")]


def main() -> None:
    vocabulary = {piece: rank for rank, piece in enumerate([*SPECIAL, *BYTES, *BLANKS, *trained_pieces(), "▁", *ASCII])}
    merges = []
    merged = [piece for piece in vocabulary if piece not in {*SPECIAL, *BYTES, *BLANKS} and len(piece) > 1]
    for piece in [*merged, *BLANKS]:
        parts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        possible = [pair for pair in parts if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(possible, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    FOLDER.mkdir(exist_ok=True)
    tokenizer.save(str(FOLDER / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,
    }
    (FOLDER / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    main()
