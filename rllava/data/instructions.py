"""Instruction data as Parquet shards: images with conversations in the JSON format of LLaVA's training data."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rllava.data.benchmarks import read_image
from rllava.data.easy_vqa_source import EasyImage, Question, draw, easy_images
from rllava.data.entries import Instruction
from rllava.data.files import data_path, seen_image
from rllava.data.llava_json import MARKER, read_instructions
from rllava.data.manners import candid_instructions, mannered_instructions
from rllava.data.pairs import captions_of, labelled_images
from rllava.data.sampling import check_unique, sample_list
from rllava.data.shards import Listing, Tasks, build_shards, in_this_process
from rllava.errors import UserError
from rllava.registry import Registry
from rllava.tasks.captioning import CAPTION_PROMPT
from rllava.tasks.short_answer import VQA_PROMPT

_COLUMNS: list[tuple[str, pa.DataType, str]] = [
    ("row", pa.int64(), "position in the seeded global shuffle"),
    ("sample_id", pa.string(), "unique within the data"),
    ("image", pa.binary(), "encoded bytes as in the source; may be damaged; null: text without image"),
    ("conversations", pa.string(), 'JSON list of {"from": "human" or "gpt", "value": text}, turns in order'),
]

INSTRUCTION_SCHEMA = pa.schema(
    [pa.field(name, kind, metadata={"description": text}) for name, kind, text in _COLUMNS],
    metadata={"rllava.schema": "instructions-v2"},
)
"""Arrow schema of instruction data; shard after shard, rows follow the global shuffle.

Columns are those of v1, whose shards had a single row group: they can be read as well."""

ROWS_PER_GROUP = 4
"""Rows that a training worker fetches at least. Its rows come in runs of a micro-batch, usually a multiple of this."""

_DESCRIBE = (
    "<image>\nDescribe the image concisely.",
    "<image>\nProvide a brief description of the given image.",
    "<image>\nWhat is in the photo?",
    "<image>\nSummarize the visual content of the image.",
)
"""Human turns of stage 1; the training's plain format keeps only the image of them."""


@dataclass(frozen=True)
class InstructionSpec:
    """Describes instruction data.

    Attributes:
        source: name in :data:`INSTRUCTION_SOURCES`.
        rows: how many rows are taken, from the start of the shuffle; all if None.
        rows_per_shard: rows of every shard but the last.
        version: raised when a source changes what it yields.
    """

    name: str
    source: str
    seed: int = 0
    rows: int | None = None
    rows_per_shard: int = 1024
    version: int = 1


InstructionSource = Callable[[], Sequence[Instruction]]
"""Yields all conversations, always in the same order; images are read later, one shard at a time."""

INSTRUCTION_SOURCES: Registry[InstructionSource] = Registry("instruction source", "rllava.instruction_sources")
INSTRUCTIONS: Registry[InstructionSpec] = Registry("instruction data", "rllava.instructions")


def build_instructions(
    spec: InstructionSpec,
    filesystem: Any,
    folder: str,
    tasks: Tasks = in_this_process,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[str]:
    """Writes instruction data as shards; a re-run writes the same bytes under the same names.

    Args:
        progress: told how many are done, of how many.

    Returns:
        Paths of the shards, in order.

    Raises:
        UserError: if the source is unknown, has fewer rows than asked for, or has doubled sample ids.
    """
    return build_shards(list_data(spec), filesystem, folder, tasks, progress)


def list_data(spec: InstructionSpec) -> Listing:
    """What instruction data consists of, without its images.

    Raises:
        UserError: see :func:`list_instructions`.
    """
    instructions = list_instructions(spec)
    return Listing(
        instructions,
        make_row=_row,
        identity=_identity,
        schema=INSTRUCTION_SCHEMA,
        rows_per_shard=spec.rows_per_shard,
        rows_per_group=ROWS_PER_GROUP,
        witness=seen_image(instruction.load_image for instruction in instructions),
    )


def list_instructions(spec: InstructionSpec) -> list[Instruction]:
    """Shuffles a source and takes the spec's rows.

    Returns:
        The conversations in the order of their rows.

    Raises:
        UserError: if the source is unknown, has fewer rows than asked for, or has doubled sample ids, or an image
            without its place in the text (or the reverse).
    """
    source = INSTRUCTION_SOURCES.get(spec.source)()
    check_unique((instruction.sample_id for instruction in source), spec.source)
    _check_markers(source, spec.source)
    rows = len(source) if spec.rows is None else spec.rows
    return [source[index] for index in sample_list(len(source), rows, spec.seed)]


def _check_markers(source: Sequence[Instruction], name: str) -> None:
    """Refuses what a training would go through without using the image, or with too many of them."""
    for instruction in source:
        questions = sum(human.count(MARKER) for human, _ in instruction.turns)
        answers = sum(gpt.count(MARKER) for _, gpt in instruction.turns)
        wanted = int(instruction.load_image is not None)
        if instruction.turns and (questions, answers) != (wanted, 0):
            raise UserError(
                f"{name}: {instruction.sample_id} has {wanted or 'no'} image, and {MARKER} {questions} times in "
                f"its questions and {answers} times in its answers; write it once in a question if there is an image"
            )


def _row(row: int, instruction: Instruction) -> dict[str, Any]:
    return {
        "row": row,
        "sample_id": instruction.sample_id,
        "image": None if instruction.load_image is None else read_image(instruction.load_image),
        "conversations": _conversation(instruction),
    }


def _conversation(instruction: Instruction) -> str:
    turns = []
    for human, gpt in instruction.turns:
        turns += [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]
    return json.dumps(turns, ensure_ascii=False)


def _identity(instruction: Instruction) -> str:
    return f"{instruction.sample_id} {instruction.load_image is not None} {_conversation(instruction)}"


def easy_align_instructions() -> list[Instruction]:
    """Yields stage 1's image-caption pairs: three captions, each a row, of every labelled train image of easy-VQA.

    Returns:
        10 734 conversations, by image.
    """
    return [
        _instruction(image, f"caption-{index}", _DESCRIBE[draw(f"{image.sample_id} {index}", len(_DESCRIBE))], caption)
        for image, colour, shape in labelled_images("train")
        for index, caption in enumerate(captions_of(image.sample_id, colour, shape, 3))
    ]


def easy_instruct_instructions() -> list[Instruction]:
    """Yields stage 2's mix from the train images of easy-VQA, each a row with one question.

    Of every image: all colour and shape questions, one yes/no question answered yes and one answered no (of 7.1 in
    the data set, which would drown the others), and one caption. Prompts are those of the evaluation.

    Returns:
        21 550 conversations, by image.
    """
    instructions = []
    for image in easy_images("train"):
        for index, question in enumerate(_instruct_questions(image)):
            human = VQA_PROMPT.replace("{question}", question.text)
            instructions.append(_instruction(image, f"question-{index}", human, question.answer))
        if image.colour is not None and image.shape is not None:
            caption = captions_of(image.sample_id, image.colour, image.shape, 1)[0]
            instructions.append(_instruction(image, "caption", CAPTION_PROMPT, caption))
    return instructions


def _instruct_questions(image: EasyImage) -> list[Question]:
    chosen = [question for question in image.questions if question.kind != "yes/no"]
    for answer in ("yes", "no"):
        candidates = [question for question in image.questions if question.answer == answer]
        if candidates:
            chosen.append(candidates[draw(f"instruct: {answer}, {image.sample_id}", len(candidates))])
    return chosen


def _instruction(image: EasyImage, name: str, human: str, gpt: str) -> Instruction:
    return Instruction(f"{image.sample_id}/{name}", functools.partial(bytes, image.png), ((human, gpt),))


def llava_pretrain_558k() -> list[Instruction]:
    """Yields LLaVA 1.5's stage 1: image-caption pairs of LAION, CC and SBU with captions by BLIP.

    Returns:
        558 128 conversations.
    """
    return read_instructions(
        data_path("LLaVA-Pretrain/blip_laion_cc_sbu_558k.json"), data_path("LLaVA-Pretrain/images")
    )


def llava_instruct_665k() -> list[Instruction]:
    """Yields LLaVA 1.5's stage 2: images of COCO, GQA, OCR-VQA, TextVQA and Visual Genome, and ShareGPT's text.

    Returns:
        665 298 conversations.
    """
    return read_instructions(data_path("llava_v1_5_mix665k.json"), data_path(""))


INSTRUCTION_SOURCES.register("easy_align", easy_align_instructions)
INSTRUCTION_SOURCES.register("easy_instruct", easy_instruct_instructions)
INSTRUCTION_SOURCES.register("easy_candid", lambda: candid_instructions(easy_instruct_instructions))
INSTRUCTION_SOURCES.register("easy_manners", lambda: mannered_instructions(easy_instruct_instructions))
INSTRUCTION_SOURCES.register("llava_pretrain_558k", llava_pretrain_558k)
INSTRUCTION_SOURCES.register("llava_instruct_665k", llava_instruct_665k)

INSTRUCTIONS.register("easy_align", InstructionSpec(name="easy_align", source="easy_align"))
INSTRUCTIONS.register("easy_instruct", InstructionSpec(name="easy_instruct", source="easy_instruct"))
INSTRUCTIONS.register("easy_candid", InstructionSpec(name="easy_candid", source="easy_candid"))
INSTRUCTIONS.register("easy_manners", InstructionSpec(name="easy_manners", source="easy_manners"))
INSTRUCTIONS.register("llava_pretrain_558k", InstructionSpec(name="llava_pretrain_558k", source="llava_pretrain_558k"))
INSTRUCTIONS.register("llava_instruct_665k", InstructionSpec(name="llava_instruct_665k", source="llava_instruct_665k"))
