"""Folders of transformers' ``LlavaForConditionalGeneration``; the tower is inside."""

from pathlib import Path
from typing import Any

from rllava.errors import UserError
from rllava.model.checkpoint.layout import Layout
from rllava.model.checkpoint.original import LANGUAGE_MODELS, NOT_READ
from rllava.model.checkpoint_spec import CheckpointSpec
from rllava.model.inner_tower import inner_tower_spec

HUGGING_FACE_PROJECTOR = "multi_modal_projector"

_CROPS = "it looks at several crops of an image (anyres)"
_NOT_SUPPORTED = {
    "llava_next": _CROPS,
    "llava_next_video": _CROPS,
    "llava_onevision": _CROPS,
    "vipllava": "its projector takes the tokens of five layers at once, and a norm comes before it",
    "video_llava": "it has one tower for images and another for videos",
    "instructblip": "a Q-Former stands between its tower and its language model",
    "instructblipvideo": "a Q-Former stands between its tower and its language model",
    "blip-2": "a Q-Former stands between its tower and its language model",
}
"""Why models that are often taken for LLaVAs cannot be read, by ``model_type``."""


def hugging_face_spec(config: dict[str, Any], folder: Path, what: str) -> CheckpointSpec:
    """What the folder of a ``LlavaForConditionalGeneration`` says about itself.

    Returns:
        The spec; name, place, template and hash are left open.

    Raises:
        UserError: if it is another model, or does what is not supported.
    """
    if config.get("model_type") != "llava":
        reason = _NOT_SUPPORTED.get(str(config.get("model_type")))
        raise UserError(
            f"{what}: unknown model_type '{config.get('model_type')}'{f' ({reason})' if reason else ''}; known: llava "
            f"(LlavaForConditionalGeneration), and folders in LLaVA's own format: {', '.join(sorted(LANGUAGE_MODELS))}"
        )
    act, bias = config.get("projector_hidden_act", "gelu"), config.get("multimodal_projector_bias", True)
    if act != "gelu" or not bias:
        raise UserError(f"{what}: a projector with {act} and bias={bias} is not supported; gelu with bias is")
    return CheckpointSpec(
        name="",
        format="hugging_face",
        weights=(),
        sha256="",
        encoders=(inner_tower_spec(config, folder, what),),
        projectors=(HUGGING_FACE_PROJECTOR,),
        projector="mlp2x_gelu",
        conversation="",
    )


def _language_model(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    described = dict(config.get("text_config") or {})
    kind = described.pop("model_type", "llama")
    if config.get("tie_word_embeddings"):
        described["tie_word_embeddings"] = True
    return kind, described


def _name_of(name: str, spec: CheckpointSpec, language_model: Any) -> str | None:
    plain = name.removeprefix("model.")
    if plain.startswith("vision_tower.") or NOT_READ.search(name):
        return None
    if plain.startswith("multi_modal_projector."):
        layer = {"linear_1": "0", "linear_2": "2"}
        _, part, rest = plain.split(".", 2)
        return f"projectors.0.{layer.get(part, part)}.{rest}"
    head = next(
        key for key, module in language_model.named_modules() if module is language_model.get_output_embeddings()
    )
    if plain.removeprefix("language_model.").startswith("lm_head."):
        return f"language_model.{head}.{plain.rpartition('lm_head.')[2]}"
    if plain.startswith("language_model."):
        base, rest = language_model.base_model_prefix, plain.removeprefix("language_model.")
        before = f"{base}." if rest.startswith(f"{base}.") else "model."  # the prefix of older files, if there is one
        return f"language_model.{base}.{rest.removeprefix(before)}"
    return f"language_model.{name}"


LAYOUT = Layout(_language_model, _name_of)
