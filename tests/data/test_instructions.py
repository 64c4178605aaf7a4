"""Instruction data: format, shuffle, balance, and no test image in it."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rllava.data.easy_vqa_source import easy_images
from rllava.data.entries import Instruction
from rllava.data.instructions import (
    INSTRUCTION_SCHEMA,
    INSTRUCTION_SOURCES,
    INSTRUCTIONS,
    InstructionSpec,
    build_instructions,
    list_instructions,
)
from rllava.data.shards import read_shard
from rllava.errors import UserError
from rllava.tasks.captioning import CAPTION_PROMPT
from rllava.tasks.short_answer import VQA_PROMPT

GOLDEN: dict[str, Any] = json.loads(Path(__file__).parent.joinpath("golden/easy.json").read_text("utf-8"))
NAMES = ["easy_align", "easy_instruct"]


@pytest.fixture(scope="module", params=NAMES)
def built(
    request: pytest.FixtureRequest, local: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[Any]]:
    folder = str(tmp_path_factory.mktemp("instructions"))
    paths = build_instructions(INSTRUCTIONS.get(request.param), local, folder)
    tables = [read_shard(local, path) for path in paths]
    assert all(table.schema.equals(INSTRUCTION_SCHEMA, check_metadata=True) for table in tables)
    assert {table.num_rows for table in tables[:-1]} == {1024}
    return request.param, [row for table in tables for row in table.to_pylist()]


def test_rows_are_numbered_through_and_unique(built: tuple[str, list[Any]]) -> None:
    name, rows = built
    assert [row["row"] for row in rows] == list(range({"easy_align": 10734, "easy_instruct": 21550}[name]))
    assert len({row["sample_id"] for row in rows}) == len(rows)


def test_first_rows_are_the_golden_ones(built: tuple[str, list[Any]]) -> None:
    name, rows = built
    assert [[row["sample_id"], json.loads(row["conversations"])] for row in rows[:6]] == GOLDEN["instructions"][name]


def test_conversations_are_in_llavas_format(built: tuple[str, list[Any]]) -> None:
    _, rows = built
    for row in rows:
        human, gpt = json.loads(row["conversations"])
        assert set(human) == set(gpt) == {"from", "value"}
        assert (human["from"], gpt["from"]) == ("human", "gpt")
        assert human["value"].startswith("<image>\n")
        assert human["value"].count("<image>") == 1
        assert "<image>" not in gpt["value"]
        assert gpt["value"]


def test_no_test_image_is_in_the_training_rows(built: tuple[str, list[Any]]) -> None:
    _, rows = built
    assert not {row["image"] for row in rows} & {image.png for image in easy_images("test")}
    train = {image.sample_id: image.png for image in easy_images("train")}
    assert all(row["image"] == train[row["sample_id"].split("/")[0]] for row in rows)


def test_stage_2_asks_as_the_evaluation_does_and_is_balanced() -> None:
    turns = [instruction.turns[0] for instruction in list_instructions(INSTRUCTIONS.get("easy_instruct"))]
    start, end = VQA_PROMPT.split("{question}")
    assert all(human == CAPTION_PROMPT or (human.startswith(start) and human.endswith(end)) for human, _ in turns)
    answers = Counter("caption" if human == CAPTION_PROMPT else gpt for human, gpt in turns)
    assert answers["caption"] == 3578
    assert abs(answers["yes"] - answers["no"]) < 50
    assert (answers["yes"] + answers["no"]) / len(turns) < 0.4
    assert min(answers.values()) > 0.02 * len(turns)


def test_a_limit_takes_the_start_of_the_same_shuffle() -> None:
    spec = INSTRUCTIONS.get("easy_instruct")

    def ids(**changes: Any) -> list[str]:
        return [instruction.sample_id for instruction in list_instructions(dataclasses.replace(spec, **changes))]

    assert ids(rows=100) == ids()[:100]
    assert ids(rows=100, seed=1) != ids(rows=100)


def test_a_rebuild_gives_the_same_bytes(local: Any, folder: str) -> None:
    spec = dataclasses.replace(INSTRUCTIONS.get("easy_align"), rows=70, rows_per_shard=32)
    first = [Path(path).read_bytes() for path in build_instructions(spec, local, folder)]
    second = [Path(path).read_bytes() for path in build_instructions(spec, local, folder)]
    assert first == second
    assert len(list(Path(folder).glob("*.parquet"))) == 3


@pytest.mark.parametrize("rows", [0, 99_999])
def test_rows_must_fit(rows: int, local: Any, folder: str) -> None:
    with pytest.raises(UserError, match=f"{rows} samples asked of a source that has 10734"):
        build_instructions(dataclasses.replace(INSTRUCTIONS.get("easy_align"), rows=rows), local, folder)


def test_several_turns_text_and_missing_images_are_kept(local: Any, folder: str) -> None:
    def missing() -> bytes:
        raise FileNotFoundError("gone.jpg")

    turns = (("<image>\nWas ist das?", "Ein Café."), ("und?", 'ein "Hund"'))
    INSTRUCTION_SOURCES.register("toy", lambda: [Instruction("a", missing, turns)])
    try:
        paths = build_instructions(InstructionSpec("toy", "toy"), local, folder)
        (row,) = read_shard(local, paths[0]).to_pylist()
        assert row["image"] == b""
        assert [turn["value"] for turn in json.loads(row["conversations"])] == [text for turn in turns for text in turn]
        assert "Café" in row["conversations"]
    finally:
        INSTRUCTION_SOURCES._entries.pop("toy")


def test_doubled_ids_are_refused(local: Any, folder: str) -> None:
    INSTRUCTION_SOURCES.register("toy", lambda: [Instruction("a", bytes, (("<image>", "x"),))] * 2)
    try:
        with pytest.raises(UserError, match="more than once"):
            build_instructions(InstructionSpec("toy", "toy"), local, folder)
    finally:
        INSTRUCTION_SOURCES._entries.pop("toy")


@pytest.mark.parametrize(
    ("image", "turns", "message"),
    [
        (bytes, (("what?", "x"),), "a has 1 image, and <image> 0 times in its questions"),
        (bytes, (("<image> <image>", "x"),), "<image> 2 times"),
        (bytes, (("<image>", "x"), ("and <image>?", "y")), "<image> 2 times"),
        (bytes, (("<image>", "<image>"),), "1 times in its answers"),
        (None, (("<image>", "x"),), "a has no image, and <image> 1 times"),
    ],
)
def test_a_source_puts_each_image_into_its_text(image: Any, turns: Any, message: str, local: Any, folder: str) -> None:
    INSTRUCTION_SOURCES.register("toy", lambda: [Instruction("a", image, turns)])
    try:
        with pytest.raises(UserError, match=message):
            build_instructions(InstructionSpec("toy", "toy"), local, folder)
    finally:
        INSTRUCTION_SOURCES._entries.pop("toy")
