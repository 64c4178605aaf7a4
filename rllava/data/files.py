"""Published data sets on disk: one root folder, named by ``$RLLAVA_DATA``, and what lies where below it.

    coco/annotations/karpathy_coco.json                 coco
    coco/val2014/                                       coco, vqav2, okvqa, pope
    flickr30k/karpathy_flickr30k.json                   flickr30k
    flickr30k/flickr30k-images/                         flickr30k
    VQAv2/v2_OpenEnded_mscoco_val2014_questions.json    vqav2
    VQAv2/v2_mscoco_val2014_annotations.json            vqav2
    okvqa/OpenEnded_mscoco_val2014_questions.json       okvqa
    okvqa/mscoco_val2014_annotations.json               okvqa
    textvqa/val_questions_vqa_format.json               textvqa
    textvqa/val_annotations_vqa_format.json             textvqa
    textvqa/train_images/                               textvqa, llava_instruct_665k
    vizwiz/val_questions_vqa_format.json                vizwiz
    vizwiz/val_annotations_vqa_format.json              vizwiz
    vizwiz/val/                                         vizwiz
    pope/coco/coco_pope_random.json                     pope
    pope/coco/coco_pope_popular.json                    pope
    pope/coco/coco_pope_adversarial.json                pope
    scienceqa/llava_test_CQM-A.json                     scienceqa
    scienceqa/problems.json                             scienceqa
    scienceqa/images/test/                              scienceqa
    LLaVA-Pretrain/blip_laion_cc_sbu_558k.json          llava_pretrain_558k
    LLaVA-Pretrain/images/                              llava_pretrain_558k
    llava_v1_5_mix665k.json                             llava_instruct_665k
    coco/train2017/                                     llava_instruct_665k
    gqa/images/                                         llava_instruct_665k
    ocr_vqa/images/                                     llava_instruct_665k
    vg/VG_100K/, vg/VG_100K_2/                          llava_instruct_665k
    multitrust/label.json                               multitrust_clean and the two below
    multitrust/source/clean/                            multitrust_clean
    multitrust/source/untarget/                         multitrust_untarget_nonadaptive
    multitrust/source/target/                           multitrust_target_nonadaptive
    RealToxicityPrompts/prompts.jsonl                   real_toxicity_prompts
    HADES/                                              hades

Names ending in "/" are folders of images. Files are named as their publishers name them: the benchmarks' as in
RobustVLM's ``bash/llava_eval.sh``, the training data's as in LLaVA's ``playground/data``. ``docs/data.md`` says more.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rllava.data.entries import Entry
from rllava.errors import UserError
from rllava.missing import Missing

ROOT_VARIABLE = "RLLAVA_DATA"
"""Environment variable that names the root folder."""

_PROBED = 100


@dataclass(frozen=True)
class DataFile:
    """A file, or a folder of images, that users fetch themselves.

    Attributes:
        path: below the root; a folder's ends in ``/``.
        source: public name of the data set it comes from.
    """

    path: str
    what: str
    source: str


_OPENFLAMINGO = "Hugging Face data set openflamingo/eval_benchmark"
_MULTITRUST = "Hugging Face data set thu-ml/MultiTrust (on request), robustness/adv_nips"
_VAL2014 = DataFile("coco/val2014/", "COCO validation images 2014", "COCO 2014, cocodataset.org")
_TEXTVQA = DataFile("textvqa/train_images/", "TextVQA train_val images", "TextVQA 0.5.1, textvqa.org")


def _questions(folder: str, questions: str, annotations: str, name: str, source: str) -> tuple[DataFile, DataFile]:
    return (
        DataFile(f"{folder}/{questions}", f"{name} questions", source),
        DataFile(f"{folder}/{annotations}", f"{name} answers", source),
    )


_SCIENCE_QA = "ScienceQA, github.com/lupantech/ScienceQA"
_VQA_FORMAT = ("val_questions_vqa_format.json", "val_annotations_vqa_format.json")

FILES: dict[str, tuple[DataFile, ...]] = {
    "coco": (
        DataFile("coco/annotations/karpathy_coco.json", "Karpathy split of COCO", _OPENFLAMINGO),
        _VAL2014,
    ),
    "flickr30k": (
        DataFile("flickr30k/karpathy_flickr30k.json", "Karpathy split of Flickr30k", _OPENFLAMINGO),
        DataFile(
            "flickr30k/flickr30k-images/", "Flickr30k images", "Flickr30k, shannon.cs.illinois.edu/DenotationGraph"
        ),
    ),
    "vqav2": (
        *_questions(
            "VQAv2",
            "v2_OpenEnded_mscoco_val2014_questions.json",
            "v2_mscoco_val2014_annotations.json",
            "VQAv2 validation",
            "VQA v2.0, visualqa.org",
        ),
        _VAL2014,
    ),
    "okvqa": (
        *_questions(
            "okvqa",
            "OpenEnded_mscoco_val2014_questions.json",
            "mscoco_val2014_annotations.json",
            "OK-VQA test",
            "OK-VQA 1.1, okvqa.allenai.org",
        ),
        _VAL2014,
    ),
    "textvqa": (*_questions("textvqa", *_VQA_FORMAT, "TextVQA validation", _OPENFLAMINGO), _TEXTVQA),
    "vizwiz": (
        *_questions("vizwiz", *_VQA_FORMAT, "VizWiz validation", _OPENFLAMINGO),
        DataFile("vizwiz/val/", "VizWiz validation images", "VizWiz-VQA, vizwiz.org"),
    ),
    "pope": (
        *(
            DataFile(
                f"pope/coco/coco_pope_{strategy}.json", f"POPE questions, {strategy}", "POPE, github.com/AoiDragon/POPE"
            )
            for strategy in ("random", "popular", "adversarial")
        ),
        _VAL2014,
    ),
    "scienceqa": (
        DataFile(
            "scienceqa/llava_test_CQM-A.json", "ScienceQA test questions as LLaVA asks them", "LLaVA 1.5's eval.zip"
        ),
        DataFile("scienceqa/problems.json", "ScienceQA choices and answers", _SCIENCE_QA),
        DataFile("scienceqa/images/test/", "ScienceQA test images, ID/image.png", _SCIENCE_QA),
    ),
    **{
        f"multitrust_{split}{'' if split == 'clean' else '_nonadaptive'}": (
            DataFile("multitrust/label.json", "MultiTrust's labels of adversarial images", _MULTITRUST),
            DataFile(f"multitrust/source/{split}/", f"MultiTrust's images, {split}", _MULTITRUST),
        )
        for split in ("clean", "untarget", "target")
    },
    "llava_pretrain_558k": (
        DataFile(
            "LLaVA-Pretrain/blip_laion_cc_sbu_558k.json",
            "image-caption pairs of stage 1",
            "Hugging Face data set liuhaotian/LLaVA-Pretrain",
        ),
        DataFile(
            "LLaVA-Pretrain/images/", "their images (images.zip)", "Hugging Face data set liuhaotian/LLaVA-Pretrain"
        ),
    ),
    "llava_instruct_665k": (
        DataFile(
            "llava_v1_5_mix665k.json",
            "conversations of stage 2",
            "Hugging Face data set liuhaotian/LLaVA-Instruct-150K",
        ),
        DataFile("coco/train2017/", "COCO training images 2017", "COCO 2017, cocodataset.org"),
        DataFile("gqa/images/", "GQA images", "GQA, cs.stanford.edu/people/dorarad/gqa"),
        DataFile("ocr_vqa/images/", "OCR-VQA images, all named .jpg", "OCR-VQA, ocr-vqa.github.io"),
        _TEXTVQA,
        DataFile("vg/VG_100K/", "Visual Genome images, part 1", "Visual Genome 1.2"),
        DataFile("vg/VG_100K_2/", "Visual Genome images, part 2", "Visual Genome 1.2"),
    ),
    "real_toxicity_prompts": (
        DataFile(
            "RealToxicityPrompts/prompts.jsonl",
            "RealToxicityPrompts",
            "Hugging Face data set allenai/real-toxicity-prompts",
        ),
    ),
    "hades": (DataFile("HADES/", "HADES, instructions and images", "Hugging Face data set Monosail/HADES"),),
}
"""What each source reads, by its name; a source that is not here needs nothing from disk."""


def data_root() -> Path | None:
    """The root folder.

    Returns:
        What ``$RLLAVA_DATA`` names, None if it is not set.
    """
    root = os.environ.get(ROOT_VARIABLE)
    return Path(root).expanduser().absolute() if root else None


def data_path(relative: str) -> Path:
    """A file of a published data set.

    Args:
        relative: its path below the root.

    Returns:
        Its path; existence is not checked.

    Raises:
        UserError: if the root is not set.
    """
    root = data_root()
    if root is None:
        raise UserError(f"{ROOT_VARIABLE} is not set; set it to the folder that holds {relative} (see docs/data.md)")
    return root / relative


def missing_data(sources: Iterable[str]) -> list[Missing]:
    """Looks which files of some data sets are not there; none is opened.

    Args:
        sources: names of benchmark or instruction sources; those that read nothing from disk need nothing.

    Returns:
        Files that do not exist, and image folders that do not exist or are empty, each once; all of them, and the
        variable, where ``$RLLAVA_DATA`` is not set.
    """
    root = data_root()
    files = dict.fromkeys(file for source in sources for file in FILES.get(source, ()))
    if root is None and files:
        about = "not set; the folder that holds the data sets, see docs/data.md"
        unset = Missing(about, f"${ROOT_VARIABLE}", "your environment")
        return [unset, *(Missing(file.what, f"${ROOT_VARIABLE}/{file.path}", file.source) for file in files)]
    return [
        Missing(file.what, f"{root}/{file.path}", file.source)
        for file in files
        if root is not None and not _is_there(root, file)
    ]


def _is_there(root: Path, file: DataFile) -> bool:
    path = root / file.path
    if not file.path.endswith("/"):
        return path.is_file()
    return path.is_dir() and next(path.iterdir(), None) is not None


def read_json(path: Path) -> Any:
    """Reads a data set's JSON file whole.

    Raises:
        UserError: if it is missing, cannot be read, or is no JSON.
    """
    content = _read(path)
    try:
        return json.loads(content)
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); fetch it again") from error


def read_json_lines(path: Path) -> list[tuple[int, Any]]:
    """Reads a data set's file of a JSON value per line; blank lines are passed over.

    Returns:
        Numbers of the lines, from 1, with their values.

    Raises:
        UserError: if it is missing, cannot be read, or a line is no JSON.
    """
    found = []
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if line.strip():
            try:
                found.append((number, json.loads(line)))
            except ValueError as error:
                raise UserError(f"{path}: line {number} is no JSON ({error}); fetch it again") from error
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}); docs/data.md says where it comes from") from error


def check_layout(images: Iterable[str], named_by: Path) -> None:
    """Refuses a folder that holds other images than its data set names; single missing ones are no reason.

    Args:
        images: paths that the data set names; of each folder the first hundred are looked for, until one is there.
        named_by: the file that names them.

    Raises:
        UserError: if none of a folder's is there.
    """
    searched: dict[str, list[str]] = {}
    found: set[str] = set()
    for image in images:
        folder = os.path.dirname(image)
        absent = searched.setdefault(folder, [])
        if folder not in found and len(absent) < _PROBED:
            if os.path.isfile(image):
                found.add(folder)
            else:
                absent.append(image)
    for folder, absent in searched.items():
        if folder not in found:
            raise UserError(
                f"{folder} lacks the images that {named_by} names: not one of the first {len(absent)} is there "
                f"(e.g. {os.path.basename(absent[0])}); unpack them so that they lie there"
            )


@dataclass(frozen=True)
class ImageFile:
    """An image in a file, which is read when it is called."""

    path: str

    def __call__(self) -> bytes:
        return Path(self.path).read_bytes()


@dataclass(frozen=True)
class ImageInParquet:
    """An image in a Parquet file of the datasets library, which is read when it is called, its row group with it.

    Attributes:
        column: of structs with the encoded ``bytes``.
        group: number of the row group.
        row: within the group.
    """

    path: str
    column: str
    group: int
    row: int

    def __call__(self) -> bytes:
        try:
            with pq.ParquetFile(self.path, memory_map=True) as file:
                images = file.read_row_group(self.group, columns=[f"{self.column}.bytes"]).column(0)
            content = images[self.row].as_py()["bytes"]
        except FileNotFoundError:
            raise  # as that of an image file
        except (pa.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{self.path} is damaged ({reason}); fetch it again") from error
        if content is None:
            raise FileNotFoundError(f"{self.path} has no image in row {self.row} of row group {self.group}")
        return bytes(content)


def laid_out(entries: list[Entry], named_by: Path) -> list[Entry]:
    """Entries, the images of which lie where they should; see :func:`check_layout`."""
    files = (entry.load_image for entry in entries)
    check_layout((file.path for file in files if isinstance(file, ImageFile)), named_by)
    return entries


def seen_image(loaders: Iterable[Callable[[], bytes] | None]) -> str | None:
    """A file with images of a data set that is there: by it another machine can tell whether it sees the data at all.

    Args:
        loaders: what reads the images; None where there is none.

    Returns:
        Path of the first of the first hundred that is there; None if none is, or images are no files.
    """
    files = (loader.path for loader in loaders if isinstance(loader, (ImageFile, ImageInParquet)))
    return next((path for path in itertools.islice(files, _PROBED) if os.path.isfile(path)), None)
