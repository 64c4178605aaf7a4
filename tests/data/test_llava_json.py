"""Conversations in LLaVA's JSON format: from files to shards, portions and tokens."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rllava.data.entries import Instruction
from rllava.data.files import ImageFile
from rllava.data.instructions import INSTRUCTION_SCHEMA, INSTRUCTIONS, build_instructions, list_instructions
from rllava.data.llava_json import read_instructions
from rllava.data.shards import read_shard
from rllava.data.stream import Stream, keep_and_decode
from rllava.errors import UserError
from tests.data.published_files import jpeg, row, write, write_training


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both training sets, tiny."""
    write_training(tmp_path / "root")
    monkeypatch.setenv("RLLAVA_DATA", str(tmp_path / "root"))
    return tmp_path / "root"


def read(folder: Path, *rows: Any) -> list[Instruction]:
    write(folder, "rows.json", list(rows))
    for name in ("a", "b"):
        write(folder, f"images/{name}.jpg", jpeg(1))
    return read_instructions(folder / "rows.json", folder / "images")


def built(name: str, local: Any, folder: str) -> dict[str, dict[str, Any]]:
    (path,) = build_instructions(INSTRUCTIONS.get(name), local, folder)
    table = read_shard(local, path)
    assert table.schema.equals(INSTRUCTION_SCHEMA)
    rows = table.to_pylist()
    assert [entry["row"] for entry in rows] == list(range(len(rows)))
    return {entry["sample_id"]: entry for entry in rows}


def test_pairs_of_stage_1_become_rows(root: Path, local: Any, folder: str) -> None:
    rows = built("llava_pretrain_558k", local, folder)
    assert {name: entry["image"] for name, entry in rows.items()} == {f"{n}/00453937{n}": jpeg(n) for n in range(3)}
    assert json.loads(rows["1/004539371"]["conversations"]) == [
        {"from": "human", "value": "Describe it.\n<image>"},
        {"from": "gpt", "value": "caption 1"},
    ]


def test_the_mix_of_stage_2_becomes_rows_with_and_without_image(root: Path, local: Any, folder: str) -> None:
    rows = built("llava_instruct_665k", local, folder)
    assert {name: entry["image"] for name, entry in rows.items()} == {
        **{f"{number}/same id": jpeg(number) for number in range(6)},
        "6/wNBG8Gp_0": None,
    }
    assert [turn["value"] for turn in json.loads(rows["4/same id"]["conversations"])] == [
        "<image>\nWhat is it?",
        "answer 4",
        "And?",
        "no",
    ]


def test_images_are_read_when_shards_are_written_not_before(root: Path, local: Any, folder: str) -> None:
    listed = list_instructions(INSTRUCTIONS.get("llava_pretrain_558k"))
    (root / "LLaVA-Pretrain/images/00452/004539372.jpg").write_bytes(b"changed since")
    assert {entry.load_image() for entry in listed if entry.load_image} == {jpeg(0), jpeg(1), b"changed since"}


def test_text_alone_is_no_damaged_image_and_a_missing_file_is(root: Path, local: Any, folder: str) -> None:
    write(root, "gqa/images/other.jpg", jpeg(5))
    mix = json.loads((root / "llava_v1_5_mix665k.json").read_text())
    write(root, "llava_v1_5_mix665k.json", [*mix, row("gone", "gqa/images/gone.jpg", "<image>", "?")])
    rows = built("llava_instruct_665k", local, folder)
    assert rows["7/gone"]["image"] == b""
    (path,) = build_instructions(INSTRUCTIONS.get("llava_instruct_665k"), local, folder)
    stream = Stream("", "", 8, 1024, 16, global_batch=8, micro_batch=8, worker=0, workers=1)
    table = keep_and_decode(read_shard(local, path), stream, offset=0, first_row=0, stop_row=8)
    damaged = dict(
        zip([entry["sample_id"] for entry in rows.values()], table.column("damaged").to_pylist(), strict=True)
    )
    assert {name for name, reason in damaged.items() if reason is not None} == {"7/gone"}
    pixels = dict(zip(rows, (np.frombuffer(p, np.uint8) for p in table.column("pixels").to_pylist()), strict=True))
    assert pixels["6/wNBG8Gp_0"].shape == (16 * 16 * 3,)
    assert not pixels["6/wNBG8Gp_0"].any()
    assert pixels["0/same id"].any()


def test_turns_follow_llavas_rules(tmp_path: Path) -> None:
    leading = row("a", None, "hello", "hi", "bye", "bye!")
    leading["conversations"] = [{"from": "gpt", "value": "dropped"}, *leading["conversations"]]
    unanswered = row("b", None, "hello", "hi", "still there?")
    nothing = row("c", None, "alone")
    conversations = read(tmp_path, leading, unanswered, nothing)
    assert [entry.turns for entry in conversations] == [
        (("hello", "hi"), ("bye", "bye!")),
        (("hello", "hi"),),
        (),
    ]


def test_an_image_without_marker_comes_first_and_the_rows_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        row("bare", "a.jpg", "what is it?", "a cat", "and?", "no"),
        row("in an answer", "a.jpg", "what?", "<image> a cat"),
        row("in an unanswered turn", "a.jpg", "what?", "a cat", "<image> and?"),
        row("good", "a.jpg", "what? <image>", "a cat"),
        row("twice", "a.jpg", "<image> or <image>?", "a cat"),
        row("quoted", None, "what is <image>?", "a marker"),
        row("alone", "a.jpg", "<image>"),
    ]
    conversations = read(tmp_path, *rows)
    assert [entry.turns for entry in conversations] == [
        (("<image>\nwhat is it?", "a cat"), ("and?", "no")),
        (("<image>\nwhat?", "a cat"),),
        (("<image>\nwhat?", "a cat"),),
        (("what? <image>", "a cat"),),
        (("<image> or ?", "a cat"),),
        (("what is < image >?", "a marker"),),
        (),
    ]
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"{tmp_path}/rows.json: of 7 rows, 3 have an image but no <image> in a question")
    assert "1 hold <image> more than once" in told
    assert "1 hold <image> but have no image" in told
    assert "1 have no answered question" in told
    assert "\n" not in told


def test_rows_in_the_format_are_passed_over_in_silence(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert list_instructions(INSTRUCTIONS.get("llava_instruct_665k"))
    assert list_instructions(INSTRUCTIONS.get("llava_pretrain_558k"))
    assert not caplog.records


def test_a_list_of_one_image_is_taken(tmp_path: Path) -> None:
    rows = [{**row("one", None, "<image>", "a"), "image": ["a.jpg"]}, *(
        {**row("none", None, "hi", "ho"), "image": image} for image in ([], None, "")
    )]  # fmt: skip
    assert [entry.load_image for entry in read(tmp_path, *rows)] == [
        ImageFile(f"{tmp_path}/images/a.jpg"),
        None,
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": ["a.jpg", "b.jpg"]}, r"row 0 \(id bad\) has 2 images, and a model here takes one"),
        ({"image": 7}, r"row 0 \(id bad\): its image is a int"),
        ({"images": ["a.jpg"]}, r"row 0 \(id bad\) has 'images', which LLaVA's format does not"),
        ({"video": "a.mp4"}, r"row 0 \(id bad\) has 'video'"),
    ],
)
def test_a_row_whose_image_would_not_be_used_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, {**row("bad", None, "<image>", "a"), **change})
    assert "\n" not in str(caught.value)


def test_one_marker_stays_with_an_image_and_none_without(tmp_path: Path) -> None:
    several = row("a", "a.jpg", "so? ", "it is <image>", "<image>\nwhat?", "<image> a cat", "and <image>?", " no ")
    quoting = row("b", None, "what does <image> mean?", "<image> stands for one")
    with_image, without = read(tmp_path, several, quoting)
    assert with_image.turns == (("so? ", "it is"), ("<image>\nwhat?", "a cat"), ("and ?", " no "))
    assert without.turns == (("what does < image > mean?", "< image > stands for one"),)
    assert without.load_image is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[{", "rows.json is no JSON"),
        ({"rows": []}, "is no list of conversations"),
        ([row("a", None, "q", "a"), {"id": "b"}], "row 1 is not in LLaVA's format .no 'conversations'"),
        ([{"conversations": ["text"]}], "row 0 is not in LLaVA's format"),
        ([7], "row 0 is not in LLaVA's format"),
        ([{"conversations": [{"from": "human", "value": "a"}] * 2}], "turns of row 0 do not alternate"),
        ([{"conversations": [{"from": "system", "value": "a"}]}], "turns of row 0 do not alternate"),
        ([row("a", "sub/none.jpg", "<image>", "a")], "images/sub lacks the images .*not one of the first 1 is there"),
    ],
)
def test_a_wrong_file_is_named_in_one_line(content: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path, "rows.json", content)
    with pytest.raises(UserError, match=message) as caught:
        read_instructions(tmp_path / "rows.json", tmp_path / "images")
    assert "\n" not in str(caught.value)


def test_the_order_of_rows_depends_on_the_seed_alone(root: Path) -> None:
    spec = INSTRUCTIONS.get("llava_instruct_665k")
    orders = [[entry.sample_id for entry in list_instructions(dataclasses.replace(spec, seed=s))] for s in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
