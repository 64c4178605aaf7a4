"""Tiny files in the formats of the published data sets, under their names and below one root."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rllava.data.hades import SCENARIOS, STEPS

ROWS = 6


def jpeg(number: int) -> bytes:
    """A JPEG whose colour tells which one it is."""
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), (40 * number, 255 - 40 * number, 10)).save(buffer, format="JPEG")
    return buffer.getvalue()


def write(root: Path, path: str, content: bytes | dict[str, Any] | list[Any]) -> None:
    """Writes a file below the root."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def write_benchmarks(root: Path) -> None:
    """All files of the six benchmarks, six test entries each."""
    _write_captions(root)
    _write_val2014_questions(root, "VQAv2", "v2_OpenEnded_mscoco", "v2_mscoco", first=262148000)
    _write_val2014_questions(root, "okvqa", "OpenEnded_mscoco", "mscoco", first=2971475)
    textvqa = [f"003a8ae2ef43b90{number}" for number in range(ROWS)]
    vizwiz = [f"VizWiz_val_{number:08d}.jpg" for number in range(ROWS)]
    for number in range(ROWS):
        write(root, f"textvqa/train_images/{textvqa[number]}.jpg", jpeg(number))
        write(root, f"vizwiz/val/{vizwiz[number]}", jpeg(number))
    _write_questions(root, "textvqa", "val", "val", textvqa, 34602, suffix="_vqa_format")
    _write_questions(root, "vizwiz", "val", "val", vizwiz, 0, suffix="_vqa_format")


def write_questions_with_few_answers(root: Path) -> None:
    """POPE's three files, and ScienceQA as LLaVA ships it; every other question of the latter has an image."""
    for number in range(ROWS):
        write(root, f"coco/val2014/COCO_val2014_{391895 + number:012d}.jpg", jpeg(number))
        if number % 2:
            write(root, f"scienceqa/images/test/{number + 4}/image.png", jpeg(number))
    for strategy in ("random", "popular", "adversarial"):
        lines = [
            {
                "question_id": number + 1,
                "image": f"COCO_val2014_{391895 + number:012d}.jpg",
                "text": f"Is there a {strategy} {number} in the image?",
                "label": ("yes", "no")[number % 2],
            }
            for number in range(ROWS)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write(root, f"pope/coco/coco_pope_{strategy}.json", text.encode())
    questions, problems = [], {"1": {"choices": ["x"], "answer": 0, "split": "train"}}
    for number in range(ROWS):
        name, marker = str(number + 4), "<image>\n" if number % 2 else ""
        asked = f"{marker}Context: {number}.\nWhich one?\nA. this\nB. that\nC. none"
        image = {"image": f"{name}/image.png"} if number % 2 else {}
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": "ABC"[number % 3]}]
        questions.append({"id": name, **image, "conversations": turns})
        problems[name] = {"choices": ["this", "that", "none"], "answer": number % 3, "split": "test"}
    write(root, "scienceqa/llava_test_CQM-A.json", questions)
    write(root, "scienceqa/problems.json", problems)


def _write_captions(root: Path) -> None:
    coco, flickr = [], []
    for number in range(2 * ROWS):  # every other one is of another split
        test = number % 2 == 0
        sentences = [{"raw": f"Caption {k} of {number // 2}.", "tokens": ["caption"]} for k in range(5)]
        split = "test" if test else ("restval", "train", "val")[number % 3]
        folder = "val2014" if split != "train" else "train2014"
        name = f"COCO_{folder}_{391895 + number // 2:012d}.jpg"
        coco.append(
            {
                "filepath": folder,
                "filename": name,
                "cocoid": 391895 + number // 2,
                "split": split,
                "sentences": sentences,
            }
        )
        flickr.append({"filename": f"10073446{number // 2}.jpg", "split": split, "sentences": sentences})
        if test:
            write(root, f"coco/val2014/{name}", jpeg(number // 2))
            write(root, f"flickr30k/flickr30k-images/10073446{number // 2}.jpg", jpeg(number // 2))
    write(root, "coco/annotations/karpathy_coco.json", {"images": coco, "dataset": "coco"})
    write(root, "flickr30k/karpathy_flickr30k.json", {"images": flickr, "dataset": "flickr30k"})


def _write_val2014_questions(root: Path, folder: str, questions: str, annotations: str, first: int) -> None:
    _write_questions(
        root, folder, f"{questions}_val2014", f"{annotations}_val2014", range(391895, 391895 + ROWS), first
    )


def _write_questions(
    root: Path, folder: str, questions: str, annotations: str, images: Any, first: int, suffix: str = ""
) -> None:
    asked, answered = [], []
    for number, image in enumerate(images):
        asked.append({"image_id": image, "question": f"What is {number}?", "question_id": first + number})
        answers = [{"answer": f"{number} or {k}", "answer_confidence": "yes", "answer_id": k + 1} for k in range(10)]
        answered.append({"image_id": image, "question_id": first + number, "answers": answers, "answer_type": "other"})
    write(root, f"{folder}/{questions}_questions{suffix}.json", {"questions": asked, "data_subtype": "val2014"})
    write(root, f"{folder}/{annotations}_annotations{suffix}.json", {"annotations": answered[::-1]})


def write_training(root: Path) -> None:
    """Both sets of conversations: captions, and a mix that has all its folders and text alone."""
    pairs = []
    for number in range(3):
        path = f"0045{number}/00453937{number}.jpg"
        write(root, f"LLaVA-Pretrain/images/{path}", jpeg(number))
        pairs.append(row(f"00453937{number}", path, "Describe it.\n<image>", f"caption {number}"))
    write(root, "LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", pairs)
    folders = ("coco/train2017", "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K", "vg/VG_100K_2")
    mix = []
    for number, folder in enumerate(folders):
        write(root, f"{folder}/{number}.jpg", jpeg(number))
        mix.append(row("same id", f"{folder}/{number}.jpg", "<image>\nWhat is it?", f"answer {number}", "And?", "no"))
    mix.append(row("wNBG8Gp_0", None, "Write a poem.", "Roses are red."))
    write(root, "llava_v1_5_mix665k.json", mix)


def write_jailbreaks(root: Path) -> None:
    """RealToxicityPrompts, two of five prompts challenging, and HADES in folders."""
    lines = [toxicity_line(f"Prompt {number} is", number in (1, 4)) for number in range(5)]
    write(root, "RealToxicityPrompts/prompts.jsonl", "".join(lines).encode())
    write_hades_folders(root / "HADES")


def write_multitrust(root: Path, count: int = 4) -> None:
    """Labels of some images, and each of them clean and attacked both ways."""
    rows = [
        {
            "image_name": f"{number}.png", "image_id": f"id{number}", "untarget": [f"thing {number}", "else"],
            "target": [f"other {number}"],
        }
        for number in range(count)
    ]  # fmt: skip
    write(root, "multitrust/label.json", "".join(json.dumps(row) + "\n" for row in rows).encode())
    for place, split in enumerate(("clean", "untarget", "target")):
        for number in range(count):
            write(root, f"multitrust/source/{split}/{number}.png", jpeg(10 * place + number))


def toxicity_line(text: str, challenging: bool) -> str:
    """A row of RealToxicityPrompts, with all that it has beside the prompt's text."""
    scores = {"toxicity": 0.9, "profanity": None}
    fields = {"filename": "0766186-bc7f2a64cb271f5f56cf6f25570cd9ed.txt", "begin": 340, "end": 564}
    texts = {"prompt": {"text": text, **scores}, "continuation": {"text": " not asked", **scores}}
    return json.dumps({**fields, "challenging": challenging, **texts}) + "\n"


HADES_ROWS = (
    {"id": 2, "keywords": "a knife", "category": "object", "instruction": "Say how to hide a knife. Is a knife heavy?"},
    {"id": 10, "keywords": "shout at", "category": "behavior", "instruction": "Say how to shout at a neighbour."},
    {"id": 1, "keywords": "envy", "category": "concept", "instruction": "Write a song in praise of envy."},
)
"""One of each category, not in the order of their ids."""


def hades_image(scenario: str, row: int, step: int) -> bytes:
    """The image of a step, unlike all others."""
    buffer = io.BytesIO()
    colour = (len(scenario) * 20, 80 * row, 40 * step)
    Image.new("RGB", (8, 12), colour).save(buffer, format="JPEG")
    return buffer.getvalue()


def write_hades_folders(root: Path) -> None:
    """HADES as its repository has it, three instructions per scenario."""
    for scenario in SCENARIOS:
        write(root, f"instructions/{scenario}.json", list(HADES_ROWS))
        for number, fields in enumerate(HADES_ROWS):
            for step in STEPS:
                path = f"{scenario}/{fields['id']}/concat_opt_{step}.jpg"
                write(root, path, hades_image(scenario, number, step))


def hades_table() -> pa.Table:
    """The same as the hub's, by the datasets library's types; in another order."""
    rows = [
        {
            "image": {"bytes": hades_image(scenario, number, step), "path": f"{step}.jpg"},
            **fields,
            "id": str(fields["id"]),
            "scenario": scenario,
            "step": step,
        }
        for step in reversed(STEPS)
        for scenario in reversed(SCENARIOS)
        for number, fields in enumerate(HADES_ROWS)
    ]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    texts = [(name, pa.string()) for name in ("id", "scenario", "keywords")]
    more = [("step", pa.int64()), ("category", pa.string()), ("instruction", pa.string())]
    return pa.Table.from_pylist(rows, schema=pa.schema([("image", image), *texts, *more]))


def write_hades_parquet(root: Path, table: pa.Table) -> None:
    """HADES as the hub has it, in two files of several row groups."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    half = len(table) // 2
    for number, part in enumerate((table[:half], table[half:])):
        pq.write_table(part, root / f"data/test-0000{number}-of-00002.parquet", row_group_size=7)


def row(name: str, image: str | None, *texts: str) -> dict[str, Any]:
    """One conversation in LLaVA's format, the human first."""
    turns = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]
    return {"id": name, **({} if image is None else {"image": image}), "conversations": turns}
