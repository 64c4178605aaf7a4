"""Writes apgd_llava.json: the loss at every step of RobustVLM's own APGD on embedded LLaVAs, one image at a time.

    python -m tests.golden.make_apgd_llava PATH_TO_A_CHECKOUT_OF_chs20/RobustVLM

Float32, as published. The projectors are untrained: their weights follow from the seed of the model's spec.
"""

import json
import sys
from pathlib import Path

import torch

from benchmarks.published_loop import published_code
from tests.model.test_llava import QUESTIONS, conversation, make, pixels

ENCODERS = ("tiny-clip", "tiny-advxl")
STEPS = 20
SAMPLES = 3


def main(checkout: str) -> None:
    reference = published_code(Path(checkout))
    rows = []
    for encoder in ENCODERS:
        llava = make(encoder, dtype=torch.float32)
        images_BCHW = pixels(SAMPLES, torch.float32)
        for sample in range(SAMPLES):
            tokens = conversation(llava, *QUESTIONS[sample])
            losses: list[float] = []

            def loss(x: torch.Tensor, losses=losses, llava=llava, tokens=tokens) -> torch.Tensor:  # type: ignore[no-untyped-def]
                value: torch.Tensor = llava.answer_loss(x, [tokens])
                losses.append(float(value))
                return value

            image_1CHW = images_BCHW[sample : sample + 1]
            reference.apgd(loss, image_1CHW, "linf", 8 / 255, n_iter=STEPS, alpha=1.0)
            rows.append({"encoder": encoder, "sample": sample, "losses": losses})
    Path(__file__).with_name("apgd_llava.json").write_text(json.dumps(rows) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
