"""delta-CLIP: what it is comes from the ``open_clip_config.json`` beside its weights, and is held to them strictly.

Its repositories hold a file of both towers, that configuration, and a vocabulary of BERT, which the configuration names
in an entry of ``text_cfg`` that open_clip does not know. Here the towers have the widths of the real ones and two
blocks, in both layouts that may be theirs: CLIP's, and CLIPA's.
"""

import json
import math
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from rllava.encoders import build_encoder, encoder_spec
from rllava.errors import UserError
from rllava.weights import pin_weights
from tests.encoders.test_real_encoders import normalised, pixels_of

LAYOUTS: dict[str, dict[str, Any]] = {
    "CLIP": {},
    "CLIPA": {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
}
SIZES = {"l-224": (224, 1024, 64), "l-336": (336, 1024, 64), "h-336": (336, 1280, 80)}
"""Side of the image, width, width of a head."""

BERT = {"vocab_path": "vocab.txt", "tokenizer": "bert", "context_length": 8, "vocab_size": 50, "width": 32, "heads": 2}


def described(name: str, layout: str, **changes: Any) -> dict[str, Any]:
    size, width, head = SIZES[name]
    vision = {"image_size": size, "layers": 2, "width": width, "head_width": head, "patch_size": 14, "mlp_ratio": 0.5}
    return {"embed_dim": 32, "vision_cfg": {**vision, **LAYOUTS[layout], **changes}, "text_cfg": {**BERT, "layers": 1}}


def write(root: Path, name: str, layout: str, config: dict[str, Any] | None = None) -> Any:
    """Both files of a repository in the weights folder, with random weights; the model they are of."""
    model = described(name, layout)
    text = {key: value for key, value in model["text_cfg"].items() if key not in ("vocab_path", "tokenizer")}
    clip = open_clip.CLIP(model["embed_dim"], model["vision_cfg"], text).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in clip.visual.parameters():
        spread = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.2
        parameter.data += math.sqrt(spread) * 0.05 * torch.randn(parameter.shape, generator=generator)
    folder = root / "zw123" / f"delta_clip_{name.replace('-', '14_')}"
    folder.mkdir(parents=True)
    torch.save(clip.state_dict(), folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(json.dumps(config or {"model_cfg": model, "preprocess_cfg": {}}))
    return clip


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weights folder, where the hub cannot be reached."""
    monkeypatch.setenv("RLLAVA_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "layout"), [("l-224", "CLIP"), ("l-224", "CLIPA"), ("l-336", "CLIP"), ("h-336", "CLIPA")]
)
def test_features_are_open_clips_in_either_layout(name: str, layout: str, root: Path) -> None:
    clip = write(root, name, layout)
    spec = pin_weights(encoder_spec(f"deltaclip-{name}"))
    images = pixels_of(spec)[:1]
    seen: list[Tensor] = []
    clip.visual.transformer.resblocks[-2].register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        clip.visual(normalised(spec, images))
        tokens_BPD = build_encoder(spec)(images)
    assert tokens_BPD.shape == (1, spec.tokens, spec.width)
    torch.testing.assert_close(tokens_BPD, seen[0][:, 1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("held", "said"), [("CLIP", "CLIPA"), ("CLIPA", "CLIP")])
def test_weights_of_another_layout_are_refused(held: str, said: str, root: Path) -> None:
    write(root, "l-224", held, {"model_cfg": described("l-224", said)})
    problem = "unexpected ln_pre" if held == "CLIP" else "missing ln_pre"
    with pytest.raises(UserError, match=f"does not fit the architecture: .*{problem}"):
        build_encoder(pin_weights(encoder_spec("deltaclip-l-224")))


def test_quick_gelu_is_taken_from_the_configuration(root: Path) -> None:
    write(root, "l-224", "CLIP", {"model_cfg": {**described("l-224", "CLIP"), "quick_gelu": True}})
    assert encoder_spec("deltaclip-l-224").activation == "quick_gelu"
    assert encoder_spec("deltaclip-l-224[activation=gelu]").activation == "gelu"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 336}, "describes a tower for images of 336 pixels, not the vision transformer for 224"),
        ({"width": 768}, "describes a tower of 256 tokens of width 768, not of 256 of 1024"),
        ({"rotary": True}, "vision_cfg has rotary, which this release of open_clip does not know"),
    ],
)
def test_a_configuration_of_something_else_is_refused(changes: dict[str, Any], message: str, root: Path) -> None:
    folder = root / "zw123" / "delta_clip_l14_224"
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": described("l-224", "CLIP", **changes)}))
    with pytest.raises(UserError, match=message) as caught:
        encoder_spec("deltaclip-l-224")
    assert "\n" not in str(caught.value)


def test_without_its_configuration_nothing_is_built(root: Path) -> None:
    spec = encoder_spec("deltaclip-h-336")
    with pytest.raises(UserError, match=r"zw123/delta_clip_h14_336/open_clip_pytorch_model.bin do not exist"):
        pin_weights(spec)
    write(root, "h-336", "CLIP")
    (root / "zw123/delta_clip_h14_336/open_clip_config.json").unlink()
    with pytest.raises(UserError, match=r"open_clip_config.json, which says what it is, has to lie beside its weights"):
        build_encoder(pin_weights(encoder_spec("deltaclip-h-336")))


def test_statistics_that_differ_from_the_authors_code_are_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    clips = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.229, 0.224, 0.225]}
    write(root, "l-224", "CLIP", {"model_cfg": described("l-224", "CLIP"), "preprocess_cfg": clips})
    assert encoder_spec("deltaclip-l-224").mean == (0.485, 0.456, 0.406)
    (told,) = [record.getMessage() for record in caplog.records]
    assert (
        "says mean (0.48145466, 0.4578275, 0.40821073), the authors' code (0.485, 0.456, 0.406), which is taken" in told
    )
