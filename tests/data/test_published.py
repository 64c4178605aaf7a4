"""The paper's benchmarks, from files in their publishers' formats to shards."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rllava.data.files
from rllava.data.benchmarks import BENCHMARKS, SOURCES, build_benchmark, list_samples, read_metric
from rllava.data.files import FILES, missing_data, read_json
from rllava.data.sampling import sample_list
from rllava.data.shards import read_shard
from rllava.errors import UserError
from rllava.evaluation.samples import decode_shard
from rllava.tasks.task import Decoding
from tests.data.published_files import (
    ROWS,
    jpeg,
    write,
    write_benchmarks,
    write_jailbreaks,
    write_multitrust,
    write_questions_with_few_answers,
    write_training,
)

SHORT = "Answer the question using a single word or phrase."
PAPER = {
    "coco": ("<image>\nProvide a short caption for this image.", 20, 10.0),
    "flickr30k": ("<image>\nProvide a short caption for this image.", 20, 2.0),
    "vqav2": (f"<image>\nWhat is 3?\n{SHORT}", 5, 0.0),
    "okvqa": (f"<image>\nWhat is 3?\n{SHORT}", 5, 0.0),
    "textvqa": (f"<image>\nWhat is 3?\n{SHORT}", 10, 0.0),
    "vizwiz": (
        "<image>\nWhat is 3?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n" + SHORT,
        5,
        0.0,
    ),
}
"""Prompt of entry 3, most tokens, drop threshold."""

IDS = {
    "coco": [str(391895 + number) for number in range(ROWS)],
    "flickr30k": [f"10073446{number}" for number in range(ROWS)],
    "vqav2": [str(262148000 + number) for number in range(ROWS)],
    "okvqa": [str(2971475 + number) for number in range(ROWS)],
    "textvqa": [str(34602 + number) for number in range(ROWS)],
    "vizwiz": [str(number) for number in range(ROWS)],
}
"""Ids in the order of the files."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All data sets, tiny."""
    root = tmp_path / "data sets"
    write_benchmarks(root)
    write_questions_with_few_answers(root)
    write_multitrust(root)
    write_training(root)
    write_jailbreaks(root)
    monkeypatch.setenv("RLLAVA_DATA", str(root))
    return root


@pytest.mark.parametrize("name", PAPER)
def test_files_become_shards_with_the_papers_samples(name: str, root: Path, local: Any, folder: str) -> None:
    spec = dataclasses.replace(BENCHMARKS.get(name), samples=ROWS)
    (path,) = build_benchmark(spec, local, folder)
    rows = read_shard(local, path).to_pylist()
    np.random.seed(42)
    chosen = np.random.choice(ROWS, ROWS, replace=False)  # as the paper's code draws them
    assert [row["sample_id"] for row in rows] == [IDS[name][index] for index in chosen]
    for row, index in zip(rows, chosen, strict=True):
        assert row["image"] == jpeg(index)
        if spec.task.kind == "short_answer":
            assert row["references"] == [f"{index} or {k}" for k in range(10)]
        else:
            assert row["references"] == [f"Caption {k} of {index}." for k in range(5)]
    assert rows[list(chosen).index(3)]["prompt"] == PAPER[name][0]
    metric, _ = read_metric(local, folder)
    assert metric.name == ("vqa_accuracy" if spec.task.kind == "short_answer" else "cider")


@pytest.mark.parametrize("name", PAPER)
def test_specs_are_the_papers(name: str, root: Path) -> None:
    spec = BENCHMARKS.get(name)
    prompt, tokens, threshold = PAPER[name]
    assert spec.task.ask(SOURCES.get(name)(spec.split)[3].question) == prompt
    assert (spec.task.decoding, spec.task.drop_threshold) == (Decoding(tokens), threshold)
    assert (spec.samples, spec.seed) == (500, 42)


def test_okvqas_stems_are_learnt_from_all_annotations(root: Path, local: Any, folder: str) -> None:
    spec = dataclasses.replace(BENCHMARKS.get("okvqa_learnt"), samples=1)
    with pytest.raises(UserError, match="no raw_answer beside the answer"):
        build_benchmark(spec, local, folder)
    path = root / "okvqa/mscoco_val2014_annotations.json"
    annotations = json.loads(path.read_text())
    for number, annotation in enumerate(annotations["annotations"]):
        for answer in annotation["answers"]:
            answer |= {"answer": f"stem {number}", "raw_answer": f"stemming {number}s"}
    write(root, "okvqa/mscoco_val2014_annotations.json", annotations)
    build_benchmark(spec, local, folder)
    metric, state = read_metric(local, folder)
    assert (metric.name, dict(state.table)) == (
        "okvqa_learnt",
        {"stemming": "stem", "0s": "0"} | {f"{number}s": str(number) for number in range(ROWS)},
    )
    assert metric.score("Stemming 3s", ["stem 3"] * 10, state) == 100.0
    plain = dataclasses.replace(spec, name="okvqa", task=BENCHMARKS.get("okvqa").task)
    assert [sample.references for sample in list_samples(plain)] == [sample.references for sample in list_samples(spec)]


def test_500_of_so_many_entries_are_those_of_numpys_global_generator() -> None:
    for entries in (5000, 214_354):
        np.random.seed(42)
        assert sample_list(entries, 500, 42) == np.random.choice(entries, 500, replace=False).tolist()


def test_a_missing_image_keeps_its_row_and_is_reported_as_damaged(root: Path, local: Any, folder: str) -> None:
    (root / "vizwiz/val/VizWiz_val_00000000.jpg").unlink()
    write(root, "vizwiz/val/VizWiz_val_00000001.jpg", jpeg(1)[:100])
    (path,) = build_benchmark(dataclasses.replace(BENCHMARKS.get("vizwiz"), samples=ROWS), local, folder)
    errors = {sample.sample_id: sample.error for sample in decode_shard(read_shard(local, path), 16)}
    assert {name for name, error in errors.items() if error is not None} == {"0", "1"}
    assert errors["0"] == "damaged image: the image has no bytes"


def test_a_folder_with_other_images_is_refused(root: Path) -> None:
    for image in (root / "textvqa/train_images").iterdir():
        image.rename(image.with_name(f"nested-{image.name}"))
    with pytest.raises(UserError, match=r"textvqa/train_images lacks the images .*not one of the first 6 is there"):
        list_samples(dataclasses.replace(BENCHMARKS.get("textvqa"), samples=2))


@pytest.mark.parametrize(
    ("name", "path", "content", "message"),
    [
        ("coco", "coco/annotations/karpathy_coco.json", b"<html>", "karpathy_coco.json is no JSON"),
        ("coco", "coco/annotations/karpathy_coco.json", {"annotations": []}, "has no list 'images'"),
        (
            "coco",
            "coco/annotations/karpathy_coco.json",
            {"images": [{"split": "test"}]},
            "entry 0 of 'images'.*'sentences'",
        ),
        ("flickr30k", "flickr30k/karpathy_flickr30k.json", [], "has no list 'images'"),
        ("flickr30k", "flickr30k/karpathy_flickr30k.json", {"images": [7]}, "entry 0 of 'images' is not in the format"),
        ("vqav2", "VQAv2/v2_mscoco_val2014_annotations.json", {"annotations": []}, "no answers to question 262148000"),
        ("okvqa", "okvqa/mscoco_val2014_annotations.json", {"annotations": [{}]}, "no 'answers'"),
        (
            "okvqa",
            "okvqa/OpenEnded_mscoco_val2014_questions.json",
            {"questions": [{"question_id": 2971475, "image_id": "abc", "question": "?"}]},
            "entry 0 of 'questions'",
        ),
        ("textvqa", "textvqa/val_questions_vqa_format.json", {"questions": None}, "has no list 'questions'"),
    ],
)
def test_a_wrong_file_is_named_in_one_line(name: str, path: str, content: Any, message: str, root: Path) -> None:
    write(root, path, content)
    with pytest.raises(UserError, match=message) as caught:
        list_samples(BENCHMARKS.get(name))
    assert str(root) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", PAPER)
def test_unknown_splits_and_missing_files_are_one_line(name: str, root: Path) -> None:
    with pytest.raises(UserError, match=f"{name} has no split 'dev' here"):
        SOURCES.get(name)("dev")
    (root / FILES[name][0].path).unlink()
    with pytest.raises(UserError, match=r"cannot be read \(No such file.*docs/data.md"):
        SOURCES.get(name)(BENCHMARKS.get(name).split)


def test_nothing_is_missing_where_all_files_are(root: Path) -> None:
    assert missing_data(FILES) == []
    assert missing_data(["easy_vqa", "easy_align"]) == []


@pytest.mark.parametrize("name", FILES)
def test_each_missing_file_is_named_once_with_where_it_comes_from(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLLAVA_DATA", str(tmp_path))
    for file in FILES[name]:
        if file.path.endswith("/"):
            (tmp_path / file.path).mkdir(parents=True)  # an empty folder has no image
    found = missing_data([name, name])
    assert [(item.where, item.source) for item in found] == [
        (f"{tmp_path}/{file.path}", file.source) for file in FILES[name]
    ]


def test_the_root_has_to_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLLAVA_DATA", raising=False)
    with pytest.raises(UserError, match="RLLAVA_DATA is not set"):
        SOURCES.get("coco")("test")
    assert missing_data(["easy_vqa"]) == []
    where = [item.where for item in missing_data(["coco"])]
    assert where == ["$RLLAVA_DATA", *(f"$RLLAVA_DATA/{file.path}" for file in FILES["coco"])]


def test_no_file_is_opened_to_see_what_is_missing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    assert missing_data(FILES) == []
    with pytest.raises(AssertionError):
        read_json(root / FILES["coco"][0].path)


def test_docs_and_docstring_name_every_file_of_every_source() -> None:
    page = Path(__file__).resolve().parents[2].joinpath("docs/data.md").read_text()
    rows = {line.split("|")[1].strip(" `"): line for line in page.splitlines() if line.startswith("| `")}
    docstring = str(rllava.data.files.__doc__)
    users = Counter[str]()
    for name, files in FILES.items():
        for file in files:
            users[file.path] += 1
            assert f"`{name}`" in rows[file.path], file.path
            assert file.path in docstring
    assert users["coco/val2014/"] == 4


def test_what_users_fetch_is_what_the_tests_write(root: Path) -> None:
    """The fixture has no file that the table lacks: names are not mended by the readers."""
    written = {path.relative_to(root) for path in root.rglob("*") if path.is_file()}
    known = [Path(file.path) for files in FILES.values() for file in files]
    assert [path for path in written if not any(path == file or file in path.parents for file in known)] == []
    assert json.loads((root / "llava_v1_5_mix665k.json").read_text())[0]["id"] == "same id"
