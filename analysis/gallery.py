"""The report's gallery: what the attacks did to the same samples under different candidates."""

import base64
import io
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from analysis.loading import RecordImages, RecordKey, SweepResults, fetch_images, record_keys
from analysis.scores import Scores

KEPT, WEAKENED, BEATEN, WRONG, FAILED = "kept", "weakened", "beaten", "wrong when clean", "no score"

_PNG_SIDE = 160  # images up to this side are embedded losslessly, larger ones as WebP: the page stays a few MB


@dataclass(frozen=True)
class Card:
    """One candidate's answers to a sample; the images are data URIs, None where the records hold none."""

    candidate: str
    verdict: str
    clean_answer: str
    clean_score: float
    answer: str
    score: float
    answer_8bit: str
    score_8bit: float | None
    best_round: str
    linf: float
    error: str
    clean_image: str | None
    adversarial_image: str | None
    perturbation_image: str | None


@dataclass(frozen=True)
class Exhibit:
    """One sample, attacked at one budget under every candidate; ``references`` are distinct, with counts."""

    benchmark: str
    sample_id: str
    prompt: str
    references: tuple[str, ...]
    cards: tuple[Card, ...]


def magnification(epsilon: float) -> int:
    """Chooses k: a change of the whole budget (in 1/255), times k, just about spans half the grey range."""
    return max(1, int(127 // epsilon)) if epsilon > 0 else 1


def choose_samples(scores: Scores, epsilon: float, per_benchmark: int) -> list[tuple[str, str]]:
    """Chooses the samples that tell most about the candidates.

    First come samples on which the attack split the candidates: among those whose clean answer scored, some lost much
    and some little. Ties go to the larger loss (so a single candidate's beaten samples lead), to the samples that most
    candidates have a score of, then to the sample id.

    Args:
        scores: the scores of the sweep, in the paper's units.
        epsilon: budget in 1/255.
        per_benchmark: how many samples to choose of each benchmark.

    Returns:
        Pairs (benchmark, sample id), in the order of the benchmarks.
    """
    clean = scores.clean
    _, e = scores.cell(scores.candidates[0], epsilon)
    chosen = []
    for name in scores.benchmarks:
        before_SC, after_SC = scores.values[name][:, :, clean], scores.values[name][:, :, e]
        usable_SC = np.isfinite(after_SC) & (np.nan_to_num(before_SC) > 0)
        lost_SC = np.where(usable_SC, before_SC - after_SC, np.nan)
        largest_S = np.max(np.nan_to_num(lost_SC, nan=-np.inf), axis=1, initial=-np.inf)
        smallest_S = np.min(np.where(usable_SC, lost_SC, np.inf), axis=1, initial=np.inf)
        spread_S = np.where(usable_SC.any(axis=1), largest_S - smallest_S, -np.inf)
        missing_S = np.isnan(after_SC).sum(axis=1)
        rated = zip(-spread_S, -largest_S, missing_S, scores.samples[name], strict=True)
        chosen += [(name, sample_id) for *_, sample_id in sorted(rated)[:per_benchmark]]
    return chosen


def build_gallery(
    results: SweepResults, scores: Scores, epsilon: float, per_benchmark: int = 3, max_cards: int = 8
) -> list[Exhibit]:
    """Builds the gallery.

    Args:
        results: the sweep; images are fetched from its storage.
        epsilon: budget in 1/255.
        per_benchmark: how many samples to show of each benchmark.
        max_cards: how many candidates to show of a sample, the first ones of the sweep.

    Returns:
        The exhibits, with a card per candidate that has a record of the sample.
    """
    records = results.records
    chosen = choose_samples(scores, epsilon, per_benchmark)
    pairs = pd.MultiIndex.from_frame(records[["benchmark", "sample_id"]])
    rows = records[pairs.isin(chosen) & records["epsilon"].isin([0.0, epsilon])]
    rows = rows[rows["candidate"].isin(scores.candidates[:max_cards])]
    images = fetch_images(results.storage, rows) if len(rows) else {}
    exhibits = []
    for benchmark, sample_id in chosen:
        sample = rows[(rows["benchmark"] == benchmark) & (rows["sample_id"] == sample_id)]
        attacked = sample[sample["epsilon"] == epsilon].set_index("candidate")
        if attacked.empty:
            continue
        names = [name for name in scores.candidates[:max_cards] if name in attacked.index]
        cards = tuple(_card(sample, name, epsilon, images) for name in names)
        first = attacked.iloc[0]
        references = _counted(first["references"])
        exhibits.append(Exhibit(benchmark, sample_id, str(first["prompt"]), references, cards))
    return exhibits


def perturbation_png(clean: bytes, adversarial: bytes, factor: int) -> bytes | None:
    """Draws the perturbation: ``factor`` times the difference of the two images around mid-grey.

    Args:
        clean: PNG of the clean image.
        adversarial: PNG of the adversarial image.

    Returns:
        A PNG of the same size; None if the two images differ in size.
    """
    before, after = _pixels(clean), _pixels(adversarial)
    if before.shape != after.shape:
        return None
    magnified = np.clip(128 + factor * (after - before), 0, 255).astype(np.uint8)
    return _encode(Image.fromarray(magnified), "PNG")


def _card(sample: pd.DataFrame, candidate: str, epsilon: float, images: dict[RecordKey, RecordImages]) -> Card:
    rows = sample[sample["candidate"] == candidate]
    row: Any = rows[rows["epsilon"] == epsilon].iloc[0]
    stored = [images.get(key, RecordImages(None, None)) for key in record_keys(rows)]
    clean = next((image.clean for image in stored if image.clean), None)
    adversarial = next((image.adversarial for image in stored if image.adversarial), None)
    change = perturbation_png(clean, adversarial, magnification(epsilon)) if clean and adversarial else None
    return Card(
        candidate=candidate,
        verdict=_verdict(row["clean_score"], row["score"], row["error"]),
        clean_answer=_text(row["clean_prediction"]),
        clean_score=float(row["clean_score"]),
        answer=_text(row["prediction"]),
        score=float(row["score"]),
        answer_8bit=_text(row["prediction_8bit"]),
        score_8bit=None if pd.isna(row["score_8bit"]) else float(row["score_8bit"]),
        best_round=_text(row["best_round"]),
        linf=float(row["linf"]),
        error=_text(row["error"]),
        clean_image=data_uri(clean),
        adversarial_image=data_uri(adversarial),
        perturbation_image=data_uri(change),
    )


def _verdict(clean_score: float, score: float, error: Any) -> str:
    """Kept: at least 90 % of the clean score; beaten: at most 10 %; weakened: between."""
    if pd.notna(error) or not np.isfinite(score):
        return FAILED
    if not clean_score > 0:
        return WRONG
    share = score / clean_score
    return KEPT if share >= 0.9 else BEATEN if share <= 0.1 else WEAKENED


def _counted(references: Any, limit: int = 6) -> tuple[str, ...]:
    if references is None:
        return ()
    counts = Counter(str(reference) for reference in references).most_common()
    shown = [text if count == 1 else f"{text} (×{count})" for text, count in counts[:limit]]
    return (*shown, f"and {len(counts) - limit} more") if len(counts) > limit else tuple(shown)


def _text(value: Any) -> str:
    return "" if value is None or pd.isna(value) else str(value)


def data_uri(png: bytes | None) -> str | None:
    if png is None:
        return None
    with Image.open(io.BytesIO(png)) as image:
        small = max(image.size) <= _PNG_SIDE
        data = png if small else _encode(image.convert("RGB"), "WEBP", quality=90)
    return f"data:image/{'png' if small else 'webp'};base64,{base64.b64encode(data).decode()}"


def _pixels(png: bytes) -> npt.NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=np.int16)


def _encode(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()
