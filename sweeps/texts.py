"""How long the texts of a sweep are, in tokens, before anything of it has run.

Where data and tokenizer are on this machine, some of their rows are tokenised. Where they are not, the template's own
text counts by its characters, and the data's by what is published or assumed; every such number says so.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rllava.data.benchmarks import BenchmarkSpec, list_benchmark
from rllava.data.files import missing_data
from rllava.data.instructions import InstructionSpec, list_instructions
from rllava.data.prompts import missing_prompts
from rllava.errors import UserError
from rllava.footprint import Texts
from rllava.model.conversation import IGNORE, IMAGE_TOKEN, TEMPLATES, Tokens, pieces, tokenize
from rllava.model.language import LanguageModelSpec, load_tokenizer
from rllava.model.shapes import local_path
from rllava.pinned import NOTHINGS_HASH
from rllava.specs import Stage
from rllava.training.loop import conversation_tokens

ROWS = 64
"""Of each data set that are looked at."""

CHARACTERS_PER_TOKEN = 4.0
"""Of English text, where no tokenizer is here: a rule of thumb."""

QUESTION, CAPTION, SHORT = "What colour is the object on the left?", 12, 3
"""A question of usual length, and tokens of a caption and of a short answer, where data is not here: assumed."""

TRAINED = {"llava_pretrain_558k": (0, 30), "llava_instruct_665k": (95, 170)}
"""Tokens of instruction data that is not here, without and with loss, template included: what LLaVA 1.5's 606 and 840
tokens a sample, an estimate, leave beside 576 of the image."""


@dataclass(frozen=True)
class Measured:
    """Lengths, and whether they were counted.

    Attributes:
        labels: texts per sample that an attack may aim at.
        answer: tokens of a generated answer, about; the end token included.
        assumed: what of it was not counted; empty: all was.
    """

    texts: Texts
    labels: float = 1.0
    assumed: str = ""


def texts_of_stage(stage: Stage, language_model: LanguageModelSpec) -> Measured:
    """Of a stage's samples, the image's tokens left out."""
    tokenizer = _tokenizer(language_model)
    if tokenizer is not None and not missing_data([stage.data.source]):
        rows = instruction_rows(stage.data)
        found = [_of_training(conversation_tokens(tokenizer, stage.conversation, row)) for row in rows]
        return Measured(_longest(found, stage.micro_batch))
    plain, labelled = TRAINED.get(stage.data.name, (60, 60))
    missing = "data" if tokenizer is not None else "tokenizer"
    return Measured(
        Texts(0, plain, labelled), assumed=f"{stage.data.name}: {plain + labelled} tokens of text, {missing} not here"
    )


def texts_of_benchmark(
    benchmark: BenchmarkSpec, conversation: str, language_model: LanguageModelSpec | None
) -> Measured:
    """Of a benchmark's questions and their first labels."""
    tokenizer = None if language_model is None else _tokenizer(language_model)
    task = benchmark.task
    here = not missing_data([benchmark.source]) and not missing_prompts(benchmark)
    entries = _entries(benchmark) if here else ()
    asked = [(task.ask(entry.question), task.labels([r for r in entry.references if r.strip()])) for entry in entries]
    if not asked:
        answer = " ".join(["word"] * (CAPTION if task.kind == "captioning" else SHORT))
        asked = [(task.ask(QUESTION), [answer] * 5)]
    labels = sum(len(texts) for _, texts in asked) / len(asked)
    turns = [(prompt, texts[0] if texts else "") for prompt, texts in asked]
    lengths = [_lengths(tokenizer, conversation, prompt, answer) for prompt, answer in turns]
    mean = Texts(*(round(sum(column) / len(lengths)) for column in zip(*lengths, strict=True)))
    lacking = [what for what, there in (("data", bool(entries)), ("tokenizer", tokenizer is not None)) if not there]
    assumed = f"{benchmark.name}: {mean.length} tokens of text, {' and '.join(lacking)} not here" if lacking else ""
    if benchmark.file is not None and benchmark.file.sha256 == NOTHINGS_HASH and not here:
        assumed += f", taken for {benchmark.samples} prompts"
    return Measured(replace(mean, answer=max(1, mean.answer)), labels, assumed)


def _lengths(tokenizer: Any, conversation: str, prompt: str, answer: str) -> tuple[int, int, int]:
    laid_out = pieces(TEMPLATES.get(conversation), [(prompt, answer)])
    if tokenizer is None:
        text = "".join(piece.text for piece in laid_out if not piece.labelled)
        before, _, after = text.partition("<image>")
        said = sum(len(piece.text) for piece in laid_out if piece.labelled)
        return (_tokens(len(before)), _tokens(len(after)), _tokens(said) + 1)
    tokens = tokenize(tokenizer, laid_out)
    found = _of_training(tokens)
    image = tokens.ids.index(IMAGE_TOKEN) if IMAGE_TOKEN in tokens.ids else 0
    return (image, found.length - image - found.answer, found.answer)


def _tokens(characters: int) -> int:
    return round(characters / CHARACTERS_PER_TOKEN)


def _of_training(tokens: Tokens) -> Texts:
    labelled = sum(label != IGNORE for label in tokens.labels)
    text = sum(token != IMAGE_TOKEN for token in tokens.ids)
    return Texts(0, text - labelled, labelled)


def _longest(found: Sequence[Texts], batch: int) -> Texts:
    """What a batch is padded to, on average: its longest sample."""
    groups = [found[first : first + batch] for first in range(0, len(found), batch)]
    length = sum(max(text.length for text in group) for group in groups) / len(groups)
    answer = sum(text.answer for text in found) / len(found)
    return Texts(0, round(length - answer), max(1, round(answer)))


@functools.cache
def _entries(benchmark: BenchmarkSpec) -> tuple[Any, ...]:
    try:
        return tuple(list_benchmark(benchmark).entries[:ROWS])
    except UserError:  # told by the sweep itself; a plan goes on without
        return ()


@functools.cache
def instruction_rows(spec: InstructionSpec) -> tuple[str, ...]:
    """The first conversations of instruction data that is here, as JSON."""
    rows = []
    for instruction in list_instructions(spec)[:ROWS]:
        turns: list[dict[str, str]] = []
        for human, gpt in instruction.turns:
            turns += [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]
        rows.append(json.dumps(turns))
    return tuple(rows)


@functools.cache
def _tokenizer(spec: LanguageModelSpec) -> Any:
    path = local_path(spec)
    if path is None:
        return None
    try:
        return load_tokenizer(path, spec.label)
    except UserError:
        return None
