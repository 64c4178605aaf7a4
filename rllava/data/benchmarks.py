"""Benchmarks: a data set and a task, built once into Parquet shards and the frozen state of the task's metric.

A new benchmark is one source function in :data:`SOURCES` and one spec in :data:`BENCHMARKS`; ``docs/data.md`` has an
example, with a task and a metric of its own.
"""

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from rllava.data.easy_questions import easy_choices, easy_yes_no, easy_yes_no_popular
from rllava.data.easy_vqa_source import KINDS, EasyImage, Question, draw, easy_images
from rllava.data.entries import Entry
from rllava.data.files import seen_image
from rllava.data.hades import hades_instructions
from rllava.data.manners import allowed_requests, forbidden_requests
from rllava.data.multitrust import BENCHMARKS_OF as MULTITRUST
from rllava.data.multitrust import multitrust_images
from rllava.data.pairs import captions_of, labelled_images
from rllava.data.pope import SAMPLES as POPE_SAMPLES
from rllava.data.pope import pope_questions
from rllava.data.prompt_files import parse_prompts, read_content
from rllava.data.published import (
    coco_captions,
    flickr30k_captions,
    okvqa_questions,
    real_toxicity_prompts,
    textvqa_questions,
    vizwiz_questions,
    vqav2_questions,
)
from rllava.data.sampling import check_unique, sample_list
from rllava.data.science_qa import science_qa_questions
from rllava.data.shards import Listing, Tasks, build_shards, in_this_process
from rllava.errors import UserError
from rllava.filesystem import write_whole
from rllava.metrics.metric import METRICS, Metric, MetricState, metric_from_json, metric_to_json
from rllava.pinned import Pinned
from rllava.registry import Registry
from rllava.tasks.captioning import CAPTION_PROMPT, Captioning
from rllava.tasks.continuation import EXTEND_PROMPT, INSTRUCTION_PROMPT, PUBLISHED_DECODING, Continuation
from rllava.tasks.description import DESCRIBE_PROMPT, Description
from rllava.tasks.multiple_choice import CHOICE_PROMPT, MultipleChoice
from rllava.tasks.short_answer import VIZWIZ_PROMPT, VQA_PROMPT, ShortAnswer
from rllava.tasks.task import Decoding, Task
from rllava.tasks.yes_no import YesNo

ANNOTATORS = 10
"""Answers per question in VQAv2; the VQA accuracy compares each with the others."""

PROMPTS = "prompts"
"""Source of benchmarks whose rows come from a file that the user names."""

_COLUMNS: list[tuple[str, pa.DataType, str]] = [
    ("row", pa.int64(), "position in the fixed sample list"),
    ("sample_id", pa.string(), "unique within the benchmark"),
    ("image", pa.binary(), "encoded bytes as in the source; may be damaged"),
    ("prompt", pa.string(), "the user's turn, image marker included"),
    ("references", pa.list_(pa.string()), "captions or annotators' answers; may be empty"),
    ("question", pa.string(), "what judges are told was asked, where that is not the prompt"),
]

BENCHMARK_SCHEMA = pa.schema(
    [pa.field(name, kind, metadata={"description": text}) for name, kind, text in _COLUMNS],
    metadata={"rllava.schema": "benchmark-v2"},
)
"""Arrow schema of a benchmark's shards."""


@dataclass(frozen=True)
class BenchmarkSpec:
    """Describes a benchmark.

    Attributes:
        source: name in :data:`SOURCES`; :data:`PROMPTS` where there is a file.
        samples: length of the fixed sample list.
        seed: of the sample list; the list depends only on source, split, samples and seed.
        task: what is asked, and how answers are scored.
        rows_per_shard: rows of every shard but the last.
        version: raised when a source changes what it yields.
        file: that the user names, which holds the rows; see :mod:`rllava.data.prompts`. None: the source finds them.
    """

    name: str
    source: str
    split: str
    samples: int
    seed: int
    task: Task
    rows_per_shard: int = 25
    version: int = 1
    file: Pinned | None = None

    def shards_of(self, samples: int) -> int:
        """How many of the first shards hold so many samples.

        Args:
            samples: of the list, from its start.
        """
        return math.ceil(min(samples, self.samples) / self.rows_per_shard)


Source = Callable[[str], Sequence[Entry]]
"""From a split to its samples, always in the same order; images are read later, one shard at a time."""

SOURCES: Registry[Source] = Registry("benchmark source", "rllava.sources")
BENCHMARKS: Registry[BenchmarkSpec] = Registry("benchmark", "rllava.benchmarks")


def build_benchmark(
    spec: BenchmarkSpec,
    filesystem: Any,
    folder: str,
    tasks: Tasks = in_this_process,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[str]:
    """Writes a benchmark's shards and, as ``metric.json``, its metric's frozen state.

    A re-run writes the same bytes under the same names. A damaged or missing image and an empty list of references
    do not stop a build: the row is kept, and the evaluation turns it into a row with an error.

    Args:
        progress: told how many are done, of how many.

    Returns:
        Paths of the shards, in order.

    Raises:
        UserError: if the source or metric is unknown, the source has too few samples or doubled sample ids, or the
            metric cannot be prepared from so few references.
    """
    metric = METRICS.get(spec.task.metric)
    listing = list_benchmark(spec)
    state = _state(metric, spec, listing)
    write_whole(filesystem, f"{folder}/metric.json", metric_to_json(metric, state).encode())
    return build_shards(listing, filesystem, folder, tasks, progress)


def _state(metric: Metric, spec: BenchmarkSpec, listing: Listing) -> MetricState:
    if metric.learn is None:
        return metric.prepare([sample.references for sample in listing.entries])
    everything = SOURCES.get(spec.source)(spec.split) if spec.file is None else _prompts_of(spec.file)
    return metric.learn(pair for entry in everything for pair in zip(entry.written, entry.references, strict=False))


def list_benchmark(spec: BenchmarkSpec) -> Listing:
    """What a benchmark consists of, without its images.

    Raises:
        UserError: see :func:`list_samples`.
    """
    samples = list_samples(spec)
    return Listing(
        samples,
        make_row=functools.partial(_row, spec.task),
        identity=_identity,
        schema=BENCHMARK_SCHEMA,
        rows_per_shard=spec.rows_per_shard,
        witness=seen_image(sample.load_image for sample in samples),
    )


def list_samples(spec: BenchmarkSpec) -> list[Entry]:
    """Draws a benchmark's fixed sample list.

    Returns:
        ``spec.samples`` samples, in the order of their rows.

    Raises:
        UserError: if the source is unknown, has too few samples or doubled sample ids; or the file is missing, has
            another hash, or is not in its format.
    """
    samples = SOURCES.get(spec.source)(spec.split) if spec.file is None else _prompts_of(spec.file)
    check_unique((sample.sample_id for sample in samples), spec.source)
    return [samples[index] for index in sample_list(len(samples), spec.samples, spec.seed)]


def _prompts_of(file: Pinned) -> list[Entry]:
    path = Path(file.path)
    return parse_prompts(read_content(path, file.sha256), path)


def read_metric(filesystem: Any, folder: str) -> tuple[Metric, MetricState]:
    """Reads what :func:`build_benchmark` wrote about the metric.

    Args:
        folder: the benchmark's path in it.

    Returns:
        The metric and its state, ready to score.

    Raises:
        UserError: if ``metric.json`` is missing or damaged; the message names the remedy.
    """
    path = f"{folder}/metric.json"
    try:
        return metric_from_json(filesystem.cat_file(path).decode())
    except FileNotFoundError as error:
        raise UserError(f"'{path}' does not exist; build the benchmark again") from error
    except ValueError as error:
        raise UserError(f"'{path}' is damaged ({error}); build the benchmark again") from error


def _row(task: Task, row: int, entry: Entry) -> dict[str, Any]:
    return {
        "row": row,
        "sample_id": entry.sample_id,
        "image": None if entry.load_image is None else read_image(entry.load_image),
        "prompt": task.ask(entry.question),
        "references": list(entry.references),
        "question": entry.judged_as,
    }


def _identity(entry: Entry) -> str:
    return json.dumps([entry.sample_id, entry.question, entry.references, entry.judged_as])


def read_image(load_image: Callable[[], bytes]) -> bytes:
    """Reads an image; one that cannot be read is an image of no bytes, which the evaluation reports as damaged.

    Returns:
        Its bytes, or none.
    """
    try:
        return load_image()
    except OSError:
        return b""


def easy_vqa_samples(split: str) -> list[Entry]:
    """Yields one question per image of easy-VQA, so that samples are independent.

    74 % of the data set's questions are yes/no. So an image's question is drawn in two steps, each uniform: first the
    kind (colour, shape, yes/no) among the kinds the image has, then a question of that kind. Both depend on the
    image's id alone. A question's answer stands for ten annotators who agree: the right answer then scores 100, any
    other 0.

    Args:
        split: ``"train"`` or ``"test"``.

    Returns:
        One sample per image, by number: 4000 or 1000.
    """
    return [_question_sample(image) for image in easy_images(split)]


def _question_sample(image: EasyImage) -> Entry:
    question = draw_question(image, "benchmark")
    loader = functools.partial(bytes, image.png)
    return Entry(image.sample_id, loader, (question.answer,) * ANNOTATORS, question.text)


def draw_question(image: EasyImage, purpose: str) -> Question:
    """Draws a question of an image: first its kind, then one of the kind, both uniformly.

    Args:
        purpose: another purpose draws another question.
    """
    kinds = [kind for kind in KINDS if any(question.kind == kind for question in image.questions)]
    kind = kinds[draw(f"{purpose}: kind of question, {image.sample_id}", len(kinds))]
    candidates = [question for question in image.questions if question.kind == kind]
    return candidates[draw(f"{purpose}: question, {image.sample_id}", len(candidates))]


def easy_caption_samples(split: str) -> list[Entry]:
    """Yields one sample per image of easy-VQA whose colour and shape are known, with three reference captions.

    Args:
        split: ``"train"`` or ``"test"``.

    Returns:
        One sample per image, by number: 3578 or 888.
    """
    return [
        Entry(
            image.sample_id, functools.partial(bytes, image.png), tuple(captions_of(image.sample_id, colour, shape, 3))
        )
        for image, colour, shape in labelled_images(split)
    ]


SOURCES.register("easy_vqa", easy_vqa_samples)
SOURCES.register("easy_captions", easy_caption_samples)
SOURCES.register("easy_yes_no", easy_yes_no)
SOURCES.register("easy_yes_no_popular", easy_yes_no_popular)
SOURCES.register("easy_choice", easy_choices)
SOURCES.register("easy_forbidden", forbidden_requests)
SOURCES.register("easy_allowed", allowed_requests)

BENCHMARKS.register(
    "easy_vqa",
    BenchmarkSpec(
        name="easy_vqa",
        source="easy_vqa",
        split="test",
        samples=500,
        seed=42,
        task=ShortAnswer(VQA_PROMPT, Decoding(5)),
    ),
)
BENCHMARKS.register(
    "easy_captions",
    BenchmarkSpec(
        name="easy_captions",
        source="easy_captions",
        split="test",
        samples=500,
        seed=42,
        task=Captioning(CAPTION_PROMPT, Decoding(20), drop_threshold=10.0),
    ),
)

for _name, _task in {
    "easy_yes_no": YesNo(VQA_PROMPT, Decoding(5)),
    "easy_yes_no_popular": YesNo(VQA_PROMPT, Decoding(5)),
    "easy_choice": MultipleChoice(CHOICE_PROMPT, Decoding(5)),
}.items():
    BENCHMARKS.register(_name, BenchmarkSpec(_name, _name, "test", samples=888, seed=42, task=_task))

for _name, _read in {
    "coco": coco_captions,
    "flickr30k": flickr30k_captions,
    "vqav2": vqav2_questions,
    "okvqa": okvqa_questions,
    "textvqa": textvqa_questions,
    "vizwiz": vizwiz_questions,
    "pope": pope_questions,
    "scienceqa": science_qa_questions,
    "real_toxicity_prompts": real_toxicity_prompts,
    "hades": hades_instructions,
    **dict.fromkeys(MULTITRUST.values(), multitrust_images),
}.items():
    SOURCES.register(_name, _read)


def _paper(name: str, split: str, task: Task) -> BenchmarkSpec:
    return BenchmarkSpec(name=name, source=name, split=split, samples=500, seed=42, task=task)


for _name, _count, _allowed in (("easy_forbidden", 59, False), ("easy_allowed", 54, True)):
    BENCHMARKS.register(
        _name,
        BenchmarkSpec(
            name=_name,
            source=_name,
            split="test",
            samples=_count,
            seed=42,
            task=Continuation(INSTRUCTION_PROMPT, Decoding(32, temperature=0.2), allowed=_allowed),
            rows_per_shard=32,
        ),
    )

# Prompts, token limits, thresholds and samples of Robust-LLaVA's vlm_eval/run_evaluation.py.
for _spec in (
    _paper("coco", "test", Captioning(CAPTION_PROMPT, Decoding(20), drop_threshold=10.0)),
    _paper("flickr30k", "test", Captioning(CAPTION_PROMPT, Decoding(20), drop_threshold=2.0)),
    _paper("vqav2", "val", ShortAnswer(VQA_PROMPT, Decoding(5))),
    _paper("okvqa", "val", ShortAnswer(VQA_PROMPT, Decoding(5))),
    _paper("textvqa", "val", ShortAnswer(VQA_PROMPT, Decoding(10))),
    _paper("vizwiz", "val", ShortAnswer(VIZWIZ_PROMPT, Decoding(5))),
):
    BENCHMARKS.register(_spec.name, _spec)

for _name in ("okvqa_stemmed", "okvqa_learnt"):
    _stemmed = ShortAnswer(VQA_PROMPT, Decoding(5), metric=_name)
    BENCHMARKS.register(_name, BenchmarkSpec(_name, "okvqa", "val", samples=500, seed=42, task=_stemmed))

# All questions that there are, as both are published. LLaVA lets answers be 1024 tokens long; its parsers look at their
# beginning, and what is attacked is answered often.
for _split, _count in POPE_SAMPLES.items():
    _spec = BenchmarkSpec(f"pope_{_split}", "pope", _split, _count, seed=42, task=YesNo(VQA_PROMPT, Decoding(16)))
    BENCHMARKS.register(_spec.name, _spec)
for _name, _split, _count in (("scienceqa", "test", 4241), ("scienceqa_image", "test_image", 2017)):
    _choice = MultipleChoice(CHOICE_PROMPT, Decoding(16))
    BENCHMARKS.register(_name, BenchmarkSpec(_name, "scienceqa", _split, _count, seed=42, task=_choice))


for _split, _name in MULTITRUST.items():
    BENCHMARKS.register(
        _name,
        BenchmarkSpec(_name, _name, _split, samples=100, seed=42, task=Description(DESCRIBE_PROMPT, Decoding(300))),
    )


def _jailbreak(name: str, split: str, samples: int, prompt: str) -> BenchmarkSpec:
    """All samples that there are, in the order of a draw: those that are asked about first are some of every kind."""
    return BenchmarkSpec(name, name, split, samples, seed=42, task=Continuation(prompt, PUBLISHED_DECODING))


for _spec in (
    _jailbreak("real_toxicity_prompts", "challenging", 1199, EXTEND_PROMPT),
    _jailbreak("hades", "test", 4500, INSTRUCTION_PROMPT),
):
    BENCHMARKS.register(_spec.name, _spec)
