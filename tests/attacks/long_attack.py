"""A targeted attack of 10 000 steps that keeps its state in a folder; to be killed by a test."""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from rllava.attacks.engine import Engine
from rllava.attacks.protocols import Round
from tests.attacks.toy import cross_entropy, judge, victims


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    rounds = (Round("target", 10_000, "float32", "clean", "=3"),)
    engine = Engine(
        rounds, victims(1), epsilon=64.0, answer_loss=cross_entropy, judge=judge, dropped=lambda _: False, places=1
    )
    state = folder / "state.pt"
    if state.exists():
        engine.load_state_dict(torch.load(state, weights_only=True))

    def save(fields: dict[str, Any]) -> None:
        torch.save(fields, folder / "state.new")
        os.replace(folder / "state.new", state)

    (outcome,) = engine.run(save, every_s=0.3)
    assert outcome.evidence is not None
    result = {"image": outcome.image_CHW, "loss": outcome.evidence.loss_S, "answer": outcome.round_predictions[0]}
    torch.save(result, folder / "result.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
