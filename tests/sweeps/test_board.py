"""What the board makes of what goes wrong around it."""

from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.board import Board


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
