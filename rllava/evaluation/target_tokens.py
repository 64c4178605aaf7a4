"""The targets of a corpus as a model reads them, after an empty request and an image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from rllava.encoders.base import EncoderSpec
from rllava.errors import UserError
from rllava.image_spec import ImageSpec
from rllava.model.checkpoint.loading import bare_connector
from rllava.model.checkpoint_spec import CheckpointSpec
from rllava.model.conversation import IGNORE, IMAGE_MARKER, TEMPLATES, Tokens, pieces, stop_ids, tokenize
from rllava.model.language import load_tokenizer
from rllava.model.llava import spliced_labels
from rllava.universal_spec import Making
from rllava.weights import check_weights


def target_tokens(
    making: Making, encoders: Sequence[EncoderSpec], tokenizer: Any, conversation: str, room: int | None
) -> list[Tokens]:
    """Lays out every target of a corpus.

    Args:
        conversation: the model's own template, unless the recipe names another one.
        room: tokens that the language model takes, visual ones included; None: unknown.

    Raises:
        UserError: if a target does not fit the model's context.
    """
    template = TEMPLATES.get(making.recipe.conversation or conversation)
    stops = stop_ids(tokenizer, TEMPLATES.get(conversation))
    visual = sum(encoder.tokens for encoder in encoders)
    found = []
    for number, target in enumerate(making.corpus.targets, start=1):
        # An empty request, laid out as it is; and no end token: the model is to begin so, and may go on.
        laid_out = pieces(template, [(f"{IMAGE_MARKER}\n", target)], bare=True)
        tokens = without_end(tokenize(tokenizer, laid_out), stops)
        length = len(spliced_labels(tokens, visual))
        if room is not None and length > room:
            raise UserError(
                f"corpus '{making.corpus.name}': target {number} takes {length} tokens with its prompt and "
                f"{visual} visual ones, and the language model has room for {room}; shorten it"
            )
        found.append(tokens)
    return found


def without_end(tokens: Tokens, stops: Sequence[int]) -> Tokens:
    """A conversation up to its last answer, the token that ends that left out, if one does."""
    last = max(index for index, label in enumerate(tokens.labels) if label != IGNORE)
    kept = last if tokens.ids[last] in stops else last + 1
    return Tokens(tokens.ids[:kept], tokens.labels[:kept])


def room_of(config: Any) -> int | None:
    """How many tokens a language model takes by its configuration; None if that does not say."""
    found: int | None = getattr(config, "max_position_embeddings", None)
    return found


def check_corpus(spec: ImageSpec) -> None:
    """Looks whether the corpus of an image fits its model's context, without reading the model's weights.

    Raises:
        UserError: if a target does not.
    """
    model = spec.model
    if isinstance(model, CheckpointSpec):
        connector, _, tokenizer = bare_connector(model, model.encoders)
        room = room_of(connector.language_model.config)
    else:
        path = check_weights(model.language_model)
        assert path is not None
        tokenizer, room = load_tokenizer(path, model.language_model.label), _room_in(path)
    target_tokens(spec.making, spec.encoders, tokenizer, model.conversation, room)


def _room_in(path: Path) -> int | None:
    """Of a GGUF file nothing is known without reading it."""
    return None if path.suffix == ".gguf" else room_of(AutoConfig.from_pretrained(path))
