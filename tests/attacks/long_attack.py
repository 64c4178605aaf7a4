"""A targeted attack of 10 000 steps that keeps its state in a folder; to be killed by a test.

``python -m tests.attacks.long_attack FOLDER [hold]``: with ``hold`` it goes no further than the second state it writes,
so that it is not over, however late the test looks.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from rllava.attacks.engine import Engine
from rllava.attacks.rounds import CLEAN, Round, target
from tests.attacks.toy import cross_entropy, judge, victims

STEPS_PER_STATE = 300


def main(folder: Path, hold: bool) -> None:
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    rounds = (Round("target", 10_000, "float32", CLEAN, target("3")),)
    engine = Engine(
        rounds, victims(1), epsilon=64.0, answer_loss=cross_entropy, judge=judge, dropped=lambda _: False, in_flight=1
    )
    state = folder / "state.pt"
    known = [0]
    if state.exists():
        fields = torch.load(state, weights_only=True)
        engine.load_state_dict(fields)
        known = [fields["running"][0][3]]

    def save(fields: dict[str, Any]) -> None:
        looks = sum(run[3] for run in fields["running"])  # of the one sample; none when it is done
        if looks < known[-1] + STEPS_PER_STATE:
            return
        torch.save(fields, folder / "state.new")
        os.replace(folder / "state.new", state)
        known.append(looks)
        if hold and len(known) == 3:
            time.sleep(3600)

    (outcome,) = engine.run(save, every_s=0.0)
    assert outcome.evidence is not None
    result = {"image": outcome.image_CHW, "loss": outcome.evidence.loss_S, "answer": outcome.round_predictions[0]}
    torch.save(result, folder / "result.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), hold=sys.argv[2:] == ["hold"])
