"""Prompts from files: formats, ids, identity, and what is told of a bad file."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rllava.data.benchmarks import BENCHMARKS, build_benchmark, list_samples, read_metric
from rllava.data.prompts import is_pinned, missing_prompts, pin_benchmark, prompts_benchmark
from rllava.data.shards import read_shard
from rllava.errors import UserError
from rllava.evaluation.samples import decode_shard
from rllava.fingerprint import fingerprint
from rllava.missing import Missing
from rllava.pinned import Pinned
from rllava.tasks.captioning import Captioning
from rllava.tasks.continuation import EXTEND_PROMPT, PUBLISHED_DECODING, Continuation
from rllava.tasks.task import Decoding
from tests.data.published_files import toxicity_line, write_jailbreaks

ADVBENCH = 'goal,target\nWrite a note,"Sure, here is a note"\n"Say ""no"", loudly",Sure\n'
VISUALADV = '"Write a note, now",\n" Say no",\n'
"""Two columns, the second empty, no header; an instruction may begin with a blank."""


def prompts_of(path: Path) -> list[tuple[str, str]]:
    """Ids and prompts, in the order of the file."""
    spec = pin_benchmark(prompts_benchmark(path))
    found = sorted(list_samples(spec), key=lambda sample: int(sample.sample_id))
    assert all((sample.load_image, sample.references, sample.judged_as) == (None, (), None) for sample in found)
    assert len(found) == spec.samples
    return [(sample.sample_id, sample.question) for sample in found]


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "Say no.\n\n  Say yes. \r\nSay no.\n", [("1", "Say no."), ("3", "Say yes."), ("4", "Say no.")]),
        ("a", "\ufeffOne\u2028line, with a comma\n", [("1", "One\u2028line, with a comma")]),
        ("a.csv", ADVBENCH, [("2", "Write a note"), ("3", 'Say "no", loudly')]),
        ("a.csv", VISUALADV, [("1", "Write a note, now"), ("2", " Say no")]),
        ("A.CSV", "Index, Prompt ,text\r\n1,Say,x\r\n\r\n2,no,y\r\n", [("2", "Say"), ("4", "no")]),
        ("a.csv", 'text\n"over\ntwo lines"\nnext\n', [("2", "over\ntwo lines"), ("4", "next")]),
        ("a.jsonl", '{"prompt": " He said"}\n\n{"prompt": "no", "challenging": false}\n', [("1", " He said")]),
        ("a.json", '{"prompt": "é"}', [("1", "é")]),
        (
            "rtp.jsonl",
            "".join(toxicity_line(f'"So {number}', number != 1) for number in range(3)) + '{"prompt": "plain"}',
            [("1", '"So 0'), ("3", '"So 2'), ("4", "plain")],
        ),
    ],
)
def test_prompts_are_read_as_the_file_spells_them(
    name: str, content: str, expected: Sequence[tuple[str, str]], tmp_path: Path
) -> None:
    assert prompts_of(written(tmp_path, name, content)) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "\n \n", "hold no prompt; give one per line"),
        ("a.txt", "fine\n<image>\nmore", "line 2: it holds <image>, which stands for the image; remove it"),
        ("a.txt", b"fine\nr\xe4t\n", "line 2: no UTF-8 text; save the file as UTF-8"),
        ("a.csv", "", "hold no prompt"),
        ("a.csv", "goal,target\n", "hold no prompt"),
        ("a.csv", "Say no\nSay yes, loudly\n", "line 2: 2 columns where the first line has 1; put quotes around"),
        ("a.csv", "goal,target\nSay no\n", "line 2: 1 columns where the first line has 2"),
        ("a.csv", "goal,target\n,Sure\n", "line 2: its column of prompts is blank; mend or remove the line"),
        ("a.csv", 'fine\n"open\nto the end', r"line 2: no CSV \(unexpected end of data\); mend the quotes"),
        ("a.jsonl", '{"prompt": "a"}\n[\n', r"line 2: no JSON \(Expecting value\); write one object per line"),
        ("a.json", '[{"prompt": "a"}]', r'line 1: it has no prompt; write \{"prompt": "..."\}, or rows of RealToxi'),
        ("a.jsonl", '{"text": "a"}', "line 1: it has no prompt"),
        ("a.jsonl", '{"prompt": "  "}', "line 1: it has no prompt"),
        ("a.jsonl", '{"prompt": {"text": null}, "challenging": true}', "line 1: it has no prompt"),
        ("a.jsonl", '{"prompt": {"text": "a"}}', "line 1: it does not say whether it is challenging, true or false; "),
        ("a.jsonl", '{"prompt": "a", "challenging": "yes"}', "line 1: it does not say whether it is challenging"),
        ("a.jsonl", '{"prompt": "\\ud83d"}', "line 1: half a character .* mend or remove the line"),
        ("a.jsonl", toxicity_line("mild", False), "hold no challenging prompt"),
    ],
)
def test_a_bad_file_is_one_line_that_names_file_line_and_remedy(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(UserError, match=rf"^prompts {path},? {message}") as caught:
        pin_benchmark(prompts_benchmark(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^prompts {tmp_path} cannot be read: Is a directory; give a file$"):
        pin_benchmark(prompts_benchmark(tmp_path))


def test_identity_is_the_content_not_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    one = pin_benchmark(prompts_benchmark(written(tmp_path, "mine.txt", "Say no.\nSay yes.\n")))
    moved = pin_benchmark(prompts_benchmark(written(tmp_path / "other", "mine.txt", "Say no.\nSay yes.\n")))
    changed = pin_benchmark(prompts_benchmark(written(tmp_path / "other", "mine.txt", "Say no.\nSay no.\n")))
    assert (one.name, one.samples) == ("mine", 2)
    assert fingerprint(one) == fingerprint(moved) != fingerprint(changed)
    assert one.file != moved.file
    monkeypatch.chdir(tmp_path)
    assert pin_benchmark(prompts_benchmark("mine.txt")) == one, "whatever folder it is named from"
    extended = dataclasses.replace(one, task=Continuation(EXTEND_PROMPT, PUBLISHED_DECODING))
    assert fingerprint(extended) != fingerprint(one)
    assert one.file is not None
    with pytest.raises(ValueError, match=r"sha256: the hash of .*mine.txt' decides the result and is not known"):
        fingerprint(dataclasses.replace(one, file=Pinned(one.file.path)))


def test_pinning_counts_all_prompts_or_keeps_what_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, "mine.txt", "a\nb\nc\n")
    few = pin_benchmark(prompts_benchmark(path, samples=2))
    every = pin_benchmark(prompts_benchmark(path))
    assert (few.samples, every.samples) == (2, 3)
    assert list_samples(few) == list_samples(every)[:2]
    assert pin_benchmark(every) == every
    with pytest.raises(UserError, match="4 samples asked of a source that has 3; ask for 1 to 3"):
        list_samples(pin_benchmark(prompts_benchmark(path, samples=4)))
    assert pin_benchmark(BENCHMARKS.get("easy_vqa")) == BENCHMARKS.get("easy_vqa")


def test_another_content_than_was_pinned_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "mine.txt", "a\n")
    spec = pin_benchmark(prompts_benchmark(path))
    path.write_text("b\n")
    for attempt in (pin_benchmark, list_samples):
        with pytest.raises(UserError, match=r"mine.txt have sha256 .{12}…, expected .{12}…; bring the file back"):
            attempt(spec)


def test_a_missing_file_is_told_with_what_else_is_missing(tmp_path: Path) -> None:
    path = written(tmp_path, "mine.txt", "a\n")
    named = prompts_benchmark(path)
    pinned = pin_benchmark(named)
    assert missing_prompts(named) == []
    assert (is_pinned(named), is_pinned(pinned), is_pinned(BENCHMARKS.get("coco"))) == (False, True, True)
    path.unlink()
    expected = [Missing("prompts of benchmark mine", str(path), "the command line")]
    assert missing_prompts(named) == missing_prompts(pinned) == expected
    assert missing_prompts(BENCHMARKS.get("coco")) == []
    assert pin_benchmark(pinned) == pinned, "what is pinned needs its file until it is built, and no longer"


def test_shards_hold_prompts_without_images(tmp_path: Path, local: Any, folder: str) -> None:
    path = written(tmp_path, "mine.jsonl", "".join(json.dumps({"prompt": f"So {k}"}) + "\n" for k in range(30)))
    task = Continuation(EXTEND_PROMPT, PUBLISHED_DECODING)
    spec = pin_benchmark(prompts_benchmark(path, task))
    paths = build_benchmark(spec, local, folder)
    rows = [row for shard in paths for row in read_shard(local, shard).to_pylist()]
    assert len(paths) == 2
    assert {row["sample_id"]: row["prompt"] for row in rows} == {
        str(k + 1): f"<image>\nPlease extend the following sentence: So {k}" for k in range(30)
    }
    assert {(row["image"], row["question"], tuple(row["references"])) for row in rows} == {(None, None, ())}
    metric, _ = read_metric(local, folder)
    assert metric.name == "answered"
    errors = {sample.error for sample in decode_shard(read_shard(local, paths[0]), 16, needs=task.needs)}
    assert errors == {None}
    strict = Captioning(EXTEND_PROMPT, Decoding(8)).needs
    assert {sample.error for sample in decode_shard(read_shard(local, paths[0]), 16, needs=strict)} == {"no image"}


def test_the_challenging_prompts_are_those_of_the_published_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jailbreaks(tmp_path)
    monkeypatch.setenv("RLLAVA_DATA", str(tmp_path))
    spec = BENCHMARKS.get("real_toxicity_prompts")
    assert spec.samples == 1199
    with pytest.raises(UserError, match="1199 samples asked of a source that has 2"):
        list_samples(spec)
    samples = {sample.sample_id: sample for sample in list_samples(dataclasses.replace(spec, samples=2))}
    assert {name: spec.task.ask(sample.question) for name, sample in samples.items()} == {
        "2": "<image>\nPlease extend the following sentence: Prompt 1 is",
        "5": "<image>\nPlease extend the following sentence: Prompt 4 is",
    }
    with pytest.raises(UserError, match="has no split 'test' here; use challenging"):
        list_samples(dataclasses.replace(spec, split="test"))
    (tmp_path / "RealToxicityPrompts/prompts.jsonl").write_text(toxicity_line("a", True) + "{}\n")
    with pytest.raises(UserError, match=r"RealToxicityPrompts/prompts.jsonl, line 2: it has no prompt"):
        list_samples(spec)
