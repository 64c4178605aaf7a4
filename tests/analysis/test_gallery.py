"""The gallery's choice of samples, its verdicts and its images."""

import io

import numpy as np
import pytest
from PIL import Image

from analysis.gallery import BEATEN, FAILED, KEPT, WRONG, build_gallery, choose_samples, magnification, perturbation_png
from analysis.scores import arrange_scores
from analysis.statistics import Statistics
from tests.analysis.test_summary import grid


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def test_perturbation_is_magnified_around_mid_grey() -> None:
    clean = np.full((2, 2, 3), 100)
    adversarial = clean + np.array([[[8, 0, 0], [-8, 0, 0]], [[0, 3, 0], [60, -60, 0]]])
    shown = np.asarray(Image.open(io.BytesIO(perturbation_png(png(clean), png(adversarial), 15) or b"")))
    assert shown.tolist() == [[[248, 128, 128], [8, 128, 128]], [[128, 173, 128], [255, 0, 128]]]
    assert perturbation_png(png(clean), png(clean[:1]), 15) is None


@pytest.mark.parametrize(("epsilon", "factor"), [(0.0, 1), (2.0, 63), (8.0, 15), (16.0, 7), (255.0, 1)])
def test_magnification_keeps_the_budget_in_range(epsilon: float, factor: int) -> None:
    assert magnification(epsilon) == factor
    assert epsilon * factor <= 255


def test_samples_that_split_the_candidates_come_first() -> None:
    scores = arrange_scores(
        grid(
            {
                ("a", "vqa", 0.0): [100, 100, 100, 0, 100], ("a", "vqa", 8.0): [100, 0, 0, 0, 0],
                ("b", "vqa", 0.0): [100, 100, 100, 0, 100], ("b", "vqa", 8.0): [100, 0, 100, 0, 90],
            }
        )
    )  # fmt: skip
    chosen = [sample for _, sample in choose_samples(scores, 8.0, 5)]
    assert chosen == ["s2", "s4", "s1", "s0", "s3"]


def test_a_single_candidates_beaten_samples_come_first() -> None:
    scores = arrange_scores(grid({("a", "vqa", 0.0): [100, 100, 0], ("a", "vqa", 8.0): [100, 0, 0]}))
    assert choose_samples(scores, 8.0, 1) == [("vqa", "s1")]


def test_exhibits_show_every_candidate_with_its_images(statistics: Statistics) -> None:
    exhibits = build_gallery(statistics.results, statistics.scores, 8.0, per_benchmark=2)
    assert [exhibit.benchmark for exhibit in exhibits] == ["easy_vqa"] * 2 + ["easy_captions"] * 2
    for exhibit in exhibits:
        assert [card.candidate for card in exhibit.cards] == list(statistics.scores.candidates)
        for card in exhibit.cards:
            assert card.clean_image
            assert (card.adversarial_image is None) == (card.verdict == WRONG)
            assert (card.perturbation_image is None) == (card.verdict == WRONG)
            if card.verdict in (KEPT, BEATEN):
                assert (card.verdict == KEPT) == (card.score == card.clean_score)
            assert (card.verdict == FAILED) == bool(card.error)
    verdicts = {card.verdict for exhibit in exhibits for card in exhibit.cards}
    assert {KEPT, BEATEN} <= verdicts
    assert any("(×9)" in reference for reference in exhibits[0].references)
