"""Writes a LLaVA as a folder that transformers' ``LlavaForConditionalGeneration`` and ``AutoProcessor`` load.

    python -m rllava.model.export --source FOLDER --folder FOLDER

Shapes: V vocabulary, D width.
"""

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import tyro
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.llava.image_processing_llava import LlavaImageProcessor

from rllava.encoders import EncoderSpec, encoder_spec
from rllava.errors import UserError
from rllava.model.causal_lm import PLAIN, embedding_width
from rllava.model.checkpoint import load_checkpoint, read_checkpoint
from rllava.model.conversation import IMAGE_MARKER
from rllava.model.hugging_face_towers import hugging_face_tower
from rllava.model.llava import Llava
from rllava.model.weight_stream import bare


def export_hugging_face(llava: Llava, folder: Path) -> None:
    """Writes model, tokenizer and image processor in Hugging Face format.

    Logits are those of the model, but for one more token, the image's, where the tokenizer has none; it is never
    generated. Images are padded to a square, as here, with the colour of the *encoder's* mean, where here it is CLIP's.

    Args:
        folder: made if need be; must be empty.

    Raises:
        UserError: if the class cannot express the model, or the folder is not empty.
    """
    _check_expressible(llava)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; give a new folder")
    encoder: Any = llava.encoders[0]
    language_model: Any = llava.connector.language_model
    tower = hugging_face_tower(encoder)
    tokenizer = copy.deepcopy(llava.tokenizer)
    tokenizer.add_tokens([IMAGE_MARKER], special_tokens=True)
    image_token = tokenizer.convert_tokens_to_ids(IMAGE_MARKER)
    state, rows = _state(llava, tower, image_token)
    text_config = copy.deepcopy(language_model.config)
    text_config.vocab_size = rows
    has_class_token = not tower.config.model_type.startswith("siglip")
    strategy = "default" if has_class_token else "full"
    described = [part.to_dict() for part in (tower.config, text_config)]
    for part in described:
        part.pop("_name_or_path", None)
    config = LlavaConfig(
        vision_config=described[0],
        text_config=described[1],
        image_token_index=image_token,
        image_seq_length=encoder.spec.tokens,
        vision_feature_layer=-1,  # the tower ends there
        vision_feature_select_strategy=strategy,
        projector_hidden_act="gelu",
        tie_word_embeddings=bool(getattr(text_config, "tie_word_embeddings", False)),
        dtype=next(language_model.parameters()).dtype,
    )
    try:
        with bare():
            model = LlavaForConditionalGeneration(config)
        model.load_state_dict(state, assign=True)
    except (RuntimeError, AttributeError) as error:
        reason = str(error).strip().split("\n")[-1].strip()
        raise UserError(f"'{text_config.model_type}' does not fit LlavaForConditionalGeneration ({reason})") from error
    model.tie_weights()
    model.generation_config = copy.deepcopy(language_model.generation_config)
    model.generation_config.suppress_tokens = [image_token]
    model.save_pretrained(folder)
    LlavaProcessor(
        image_processor=_image_processor(encoder.spec),
        tokenizer=tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(has_class_token),
    ).save_pretrained(folder)


def _image_processor(spec: EncoderSpec) -> Any:
    return LlavaImageProcessor(
        do_pad=True,
        size={"shortest_edge": spec.image_size},
        crop_size={"height": spec.image_size, "width": spec.image_size},
        image_mean=list(spec.mean),
        image_std=list(spec.std),
    )


def _check_expressible(llava: Llava) -> None:
    if len(llava.encoders) != 1:
        names = " + ".join(encoder.spec.name for encoder in cast(Any, llava.encoders))
        raise UserError(
            f"an ensemble ({names}) cannot be exported: LlavaForConditionalGeneration has one tower and one projector"
        )
    (projector,) = llava.connector.projectors
    layers = list(projector.children())
    if [type(layer).__name__ for layer in layers] != ["Linear", "GELU", "Linear"]:
        raise UserError("only a projector mlp2x_gelu can be exported: LlavaForConditionalGeneration has no other")
    language_model: Any = llava.connector.language_model
    kind = language_model.config.model_type
    head = language_model.get_output_embeddings()
    if kind not in PLAIN or head.bias is not None:
        raise UserError(
            f"a language model of type '{kind}' cannot be exported: LlavaForConditionalGeneration has a head without "
            f"bias and scale; known: {', '.join(sorted(PLAIN))}"
        )
    if embedding_width(language_model) != language_model.config.hidden_size:
        raise UserError(
            f"a language model with embeddings of width {embedding_width(language_model)} and hidden states of width "
            f"{language_model.config.hidden_size} cannot be exported: LlavaForConditionalGeneration has one width"
        )


def _state(llava: Llava, tower: Any, image_token: int) -> tuple[dict[str, Tensor], int]:
    """Weights by the names of ``LlavaForConditionalGeneration``, and rows of the vocabulary."""
    language_model: Any = llava.connector.language_model
    base = getattr(language_model, language_model.base_model_prefix)
    embedding_VD = language_model.get_input_embeddings().weight
    missing = max(0, image_token + 1 - embedding_VD.shape[0])
    state = {f"model.vision_tower.{key}": value for key, value in tower.state_dict().items()}
    for key, value in base.state_dict(keep_vars=True).items():
        state[f"model.language_model.{key}"] = _more_rows(value, missing) if value is embedding_VD else value.detach()
    state["lm_head.weight"] = _more_rows(language_model.get_output_embeddings().weight, missing)
    for here, there in (("linear_1", 0), ("linear_2", 2)):
        for key, value in llava.connector.projectors[0].get_submodule(str(there)).state_dict().items():
            state[f"model.multi_modal_projector.{here}.{key}"] = value
    return state, embedding_VD.shape[0] + missing


def _more_rows(table_VD: Tensor, count: int) -> Tensor:
    table_VD = table_VD.detach()
    return table_VD if count == 0 else torch.cat([table_VD, table_VD.mean(0, keepdim=True).expand(count, -1)])


@dataclass(frozen=True)
class Options:
    """What to export, and where to.

    Attributes:
        source: checkpoint: a folder or ORG/NAME of the hub.
        folder: to write.
        language_model: of a checkpoint of projectors alone.
        conversation: template for questions, where it does not follow from the checkpoint.
        encoder: plugged in, in place of the checkpoint's own.
        vision_tower: of a folder in LLaVA's own format that holds a tower other than the one its config.json names: own
            or named.
        dtype: of the weights.
    """

    source: str
    folder: Path
    language_model: str | None = None
    conversation: str | None = None
    encoder: str | None = None
    vision_tower: Literal["own", "named"] | None = None
    dtype: str = "float16"


def main(options: Options) -> None:
    """Reads a checkpoint and writes it in Hugging Face format.

    Raises:
        UserError: if either is not possible.
    """
    dtypes = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if options.dtype not in dtypes:
        raise UserError(f"--dtype {options.dtype}: expected {', '.join(dtypes)}")
    spec = read_checkpoint(
        options.source,
        language_model=options.language_model,
        conversation=options.conversation,
        vision_tower=options.vision_tower,
    )
    encoders = None if options.encoder is None else [encoder_spec(options.encoder)]
    export_hugging_face(load_checkpoint(spec, encoders, dtype=dtypes[options.dtype]), options.folder)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
