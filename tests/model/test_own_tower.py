"""A folder in LLaVA's own format that holds a vision tower: which one is attacked is said, or asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rllava.errors import UserError
from rllava.model.checkpoint import load_checkpoint, read_checkpoint
from rllava.model.inner_tower import tower_state
from tests.model.checkpoints import GOLDEN, logits, weight, write_checkpoint

INNER = "model.vision_tower.vision_tower."


def inner(kind: str, change: float = 0.1, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The tower that a golden checkpoint holds, which is the one beside it, tuned by a little."""
    files = GOLDEN["checkpoints"][kind]["files"].values()
    shapes = {name: shape for file in files for name, shape in file.items() if name.startswith(INNER)}
    return {name: (weight(name, shape) + change).to(dtype) for name, shape in shapes.items()}


def write_tuned(kind: str, root: Path, change: float = 0.1, dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    tuned = inner(kind, change, dtype)
    return write_checkpoint(kind, root, more=tuned, less=tuple(tuned), **config)


def tower_of(folder: Path, **options: Any) -> dict[str, Tensor]:
    (encoder,) = load_checkpoint(read_checkpoint(str(folder), **options)).encoders
    return dict(encoder.state_dict())


@pytest.mark.parametrize("kind", ["sharded", "bin"])
def test_a_tower_that_was_tuned_needs_a_choice(kind: str, tmp_path: Path) -> None:
    folder = write_tuned(kind, tmp_path)
    with pytest.raises(
        UserError, match=r"holds a vision tower of its own \(\d+ of \d+ tensors are not first's\); say"
    ) as caught:
        read_checkpoint(str(folder))
    assert "\n" not in str(caught.value)
    assert "--vision-tower own, or --vision-tower named for the first" in str(caught.value)
    own, named = (tower_of(folder, vision_tower=choice) for choice in ("own", "named"))
    assert own.keys() == named.keys()
    for name, value in named.items():
        torch.testing.assert_close(own[name], value + 0.1)


def test_the_own_tower_is_what_the_model_sees(tmp_path: Path) -> None:
    folder = write_tuned("sharded", tmp_path)
    specs = {choice: read_checkpoint(str(folder), vision_tower=choice) for choice in ("own", "named")}
    assert [spec.encoders[0].name for spec in specs.values()] == ["sharded-tower", "first"]
    own, named = (logits(load_checkpoint(spec), "alone") for spec in specs.values())
    assert not torch.allclose(own[0], named[0], atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_frozen_tower_that_was_saved_along_needs_none(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = write_tuned("sharded", tmp_path, change=0.0, dtype=dtype)
    assert len(tower_state(folder, "")) > 10
    assert read_checkpoint(str(folder)).encoders[0].name == "first"


def test_a_tower_that_config_json_says_was_trained_needs_a_choice(tmp_path: Path) -> None:
    folder = write_tuned("sharded", tmp_path, unfreeze_mm_vision_tower=True)
    with pytest.raises(UserError, match=r"holds a trained vision tower \(unfreeze_mm_vision_tower\); say which one"):
        read_checkpoint(str(folder))
    assert read_checkpoint(str(folder), vision_tower="own").encoders[0].name == "sharded-tower"


def test_a_folder_that_lost_its_tower_says_so(tmp_path: Path) -> None:
    lost = tuple(inner("sharded"))
    folder = write_checkpoint("sharded", tmp_path, less=lost)
    assert read_checkpoint(str(folder)).encoders[0].name == "first"
    with pytest.raises(UserError, match=r"holds no weights of one; --vision-tower named takes first"):
        read_checkpoint(str(folder), vision_tower="own")
    (tmp_path / "trained").mkdir()
    trained = write_checkpoint("sharded", tmp_path / "trained", less=lost, unfreeze_mm_vision_tower=True)
    with pytest.raises(UserError, match=r"has a trained vision tower .* but holds no weights of one"):
        read_checkpoint(str(trained))
    assert read_checkpoint(str(trained), vision_tower="named").encoders[0].name == "first"


def test_a_tower_that_cannot_be_compared_needs_a_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLLAVA_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = write_tuned("sharded", tmp_path, mm_vision_tower="openai/clip-vit-large-patch14-336")
    with pytest.raises(UserError, match=r"vision tower of its own \(clip-l-336 is not here to compare it with\)"):
        read_checkpoint(str(folder))


def test_an_unknown_choice_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint("sharded", tmp_path)
    with pytest.raises(UserError, match="--vision-tower inner: expected own or named"):
        read_checkpoint(str(folder), vision_tower="inner")
