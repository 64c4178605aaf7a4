"""What the board makes of what goes wrong around it."""

from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.board import TRAIN_SHARE, Board
from sweeps.events import Imaging, Training


@pytest.mark.parametrize("ending", ["on_trial_recover", "on_trial_error"])
def test_a_storage_or_cluster_that_does_not_answer_ends_no_other_trial(
    ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_answer(*_: Any) -> Any:
        raise OSError("no answer")

    board = Board({"tiny-clip": True}, kept=no_answer, after_failure=no_answer)
    trial = SimpleNamespace(config={"candidate": "tiny-clip"}, pickled_error_file=None)
    getattr(board, ending)(1, [trial], trial)  # what is raised here ends the whole of Ray Tune's run
    assert capsys.readouterr().out.endswith("; kept: what is in storage\n")


def test_three_stages_and_images_are_shares_of_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    board = Board({"tiny-clip": True})
    board.update("tiny-clip", Training(stage=2, step=5, steps=10, loss=1.0, damaged=0, stages=3))
    assert board.rows["tiny-clip"].share == pytest.approx(TRAIN_SHARE / 2)
    board.update("tiny-clip", Training(stage=3, step=10, steps=10, loss=1.0, damaged=0, stages=3))
    assert board.rows["tiny-clip"].share == pytest.approx(TRAIN_SHARE)
    board.update("tiny-clip", Imaging(0, 6))
    board.update("tiny-clip", Imaging(2, 6, "visualadv 1 at 16/255", 0.5))
    lines = capsys.readouterr().out.splitlines()
    assert "making universal images: 6 to do" in lines[-1], "within five seconds one line is enough"
    assert "universal image 2 of 6 (visualadv 1 at 16/255: corpus loss down by 0.50)" in board.rows["tiny-clip"].text
