"""A benchmark: the yes/no questions of the embedded data, one per image."""

import functools
from collections.abc import Callable

from rllava.data.benchmarks import BenchmarkSpec, Source
from rllava.data.easy_vqa_source import easy_images
from rllava.data.entries import Entry
from rllava.tasks.task import Decoding
from rllava_example.task import YesNo

PROMPT = "<image>\n{question}\nAnswer the question using a single word or phrase."


def samples(split: str) -> list[Entry]:
    asked = [(image, [q for q in image.questions if q.kind == "yes/no"]) for image in easy_images(split)]
    return [
        Entry(image.sample_id, functools.partial(bytes, image.png), (questions[0].answer,), questions[0].text)
        for image, questions in asked
        if questions
    ]


def add_source(register: Callable[[str, Source], Source]) -> None:
    register("example_yes_no", samples)


def add(register: Callable[[str, BenchmarkSpec], BenchmarkSpec]) -> None:
    task = YesNo(PROMPT, Decoding(5))
    register(
        "example_yes_no", BenchmarkSpec("example_yes_no", "example_yes_no", "test", samples=500, seed=0, task=task)
    )
