"""Our batched APGD on embedded LLaVAs against RobustVLM's own, one image at a time."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rllava.attacks import apgd
from tests.golden.make_apgd_llava import ENCODERS, SAMPLES, STEPS
from tests.model.test_llava import QUESTIONS, conversation, make, pixels

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "apgd_llava.json").read_text())


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("prefixed", [False, True], ids=["whole text", "text before the image encoded once"])
def test_the_published_trajectory_is_repeated_to_rounding(encoder: str, prefixed: bool) -> None:
    llava = make(encoder, dtype=torch.float32)
    tokens = [conversation(llava, *QUESTIONS[sample]) for sample in range(SAMPLES)]
    prefix = llava.encode_prefix(tokens[0]) if prefixed else None
    assert (prefix is not None) == prefixed

    def loss(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
        return llava.answer_loss(pixels_BCHW, [tokens[i] for i in index_B.tolist()], prefix)

    result = apgd(loss, pixels(SAMPLES, torch.float32), epsilon=8.0, steps=STEPS)
    rows = [row for row in GOLDEN if row["encoder"] == encoder]
    assert len(rows) == SAMPLES
    for row in rows:
        expected_S = torch.tensor(row["losses"])
        assert len(expected_S) == STEPS + 1
        assert float(expected_S.max() - expected_S[0]) > 0.01, "an attack that finds nothing shows nothing"
        # Rounding may turn the sign of a vanishing gradient; that moves single pixels, and the loss a little.
        torch.testing.assert_close(result.history.loss_SB[:, row["sample"]], expected_S, rtol=0, atol=2e-3)
