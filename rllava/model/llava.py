"""The LLaVA: encoders, one projector each, a language model; token-interleaved when there are several encoders.

Shapes: B batch, C channel, H/W image, P visual tokens of an image (all encoders together), D width of the language
model, T sequence, N labelled tokens or targets, V vocabulary.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllava.encoders.base import Encoder, check_together, encode, input_size
from rllava.errors import UserError
from rllava.model.causal_lm import decoder, logits
from rllava.model.conversation import IGNORE, IMAGE_MARKER, IMAGE_TOKEN, TEMPLATES, Tokens, pieces, stop_ids, tokenize
from rllava.model.sampling import Draw, Sampling


def build_projector(kind: str, visual_width: int, width: int) -> nn.Module:
    """The map from visual tokens to the language model's embeddings.

    Args:
        kind: ``mlp2x_gelu`` (LLaVA 1.5; any number of layers) or ``linear`` (LLaVA 1).

    Raises:
        UserError: if the kind is unknown.
    """
    modules: list[nn.Module] = [nn.Linear(visual_width, width)]
    for _ in range(projector_depth(kind) - 1):
        modules += [nn.GELU(), nn.Linear(width, width)]
    return modules[0] if kind == "linear" else nn.Sequential(*modules)


def projector_depth(kind: str) -> int:
    """Linear layers of a kind of projector.

    Raises:
        UserError: if the kind is unknown.
    """
    known = re.fullmatch(r"linear|mlp([1-9]\d*)x_gelu", kind)
    if known is None:
        raise UserError(f"unknown projector '{kind}'; known: linear, mlp2x_gelu (or another number of layers)")
    return int(known[1] or 1)


@dataclass(frozen=True)
class Prefix:
    """The text before the image, encoded once for all samples and all steps of an attack.

    Attributes:
        cache: keys and values of every layer, for a batch of one; never changed.
    """

    ids: tuple[int, ...]
    cache: Any

    def repeated(self, count: int) -> Any:
        """A cache to go on from.

        Returns:
            A copy for a batch of so many.
        """
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(count)
        return cache


class Connector(nn.Module):
    """What training changes: the projectors and the language model. The frozen encoders stay outside."""

    def __init__(self, projectors: Sequence[nn.Module], language_model: nn.Module) -> None:
        super().__init__()
        self.projectors = nn.ModuleList(projectors)
        self.language_model = language_model

    def visual_tokens(self, features: Sequence[Tensor]) -> Tensor:
        """Projects each encoder's tokens and interleaves them: f1[0], f2[0], f1[1], f2[1], ...

        Args:
            features: per encoder, [B, P_e, D_e].

        Returns:
            [B, P, D].
        """
        projected = [projector(tokens) for projector, tokens in zip(self.projectors, features, strict=True)]
        return torch.stack(projected, dim=2).flatten(1, 2)

    def embed(self, visual_BPD: Tensor, ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """Token embeddings with each image marker replaced by the sample's visual tokens.

        Args:
            visual_BPD: visual tokens; those of a sample without marker are left out.
            ids: token ids with at most one :data:`IMAGE_TOKEN` per sample.

        Returns:
            Per sample, [T_b, D].

        Raises:
            UserError: if a sample has several images.
        """
        table = cast(Any, self.language_model).get_input_embeddings()
        device = visual_BPD.device
        flat = torch.tensor([token for row in ids for token in row if token != IMAGE_TOKEN], device=device)
        words = table(flat)
        embedded, position = [], 0
        for sample, row in enumerate(ids):
            if row.count(IMAGE_TOKEN) > 1:
                raise UserError(
                    f"a conversation shows {row.count(IMAGE_TOKEN)} images, but a model sees one image per "
                    f"conversation; leave one {IMAGE_MARKER} in it"
                )
            count = len(row) - row.count(IMAGE_TOKEN)
            text_TD = words[position : position + count]
            position += count
            # Text without image takes none of its visual tokens, which still ties the projectors to the loss: their
            # gradients are zero then, not absent, and workers that exchange gradients stay in step.
            marker = row.index(IMAGE_TOKEN) if IMAGE_TOKEN in row else 0
            visual_PD = visual_BPD[sample] if IMAGE_TOKEN in row else visual_BPD[sample, :0]
            text_TD = torch.cat([text_TD[:marker], visual_PD.to(words.dtype), text_TD[marker:]])
            embedded.append(text_TD)
        return embedded

    def forward(
        self, features: Sequence[Tensor], tokens: Sequence[Tokens], max_length: int, prefix: Prefix | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the labelled tokens, summed per sample.

        Padding is on the right and the model is causal, so no token ever sees padding. Logits are computed at
        labelled positions alone, in float32.

        Args:
            features: the encoders' tokens, per encoder [B, P_e, D_e].
            tokens: ids and labels of the B conversations.
            max_length: in tokens, visual ones included; longer sequences are cut.
            prefix: that all conversations begin with, already encoded.

        Returns:
            Summed loss and number of labelled tokens, both [B].
        """
        visual_BPD = self.visual_tokens(features)
        known = 0 if prefix is None else len(prefix.ids)
        assert prefix is None or all(sample.ids[:known] == prefix.ids for sample in tokens)
        embedded = self.embed(visual_BPD, [sample.ids[known:] for sample in tokens])
        labels = [spliced_labels(sample, visual_BPD.shape[1])[known:] for sample in tokens]
        length = min(max(len(row) for row in labels), max_length - known)
        inputs_BTD = torch.stack([_pad(row[:length], length) for row in embedded])
        label_BT = _padded(labels, length, IGNORE).to(visual_BPD.device)
        cache = {"use_cache": False} if prefix is None else {"past_key_values": prefix.repeated(len(tokens))}
        hidden_BTD = decoder(self.language_model)(inputs_embeds=inputs_BTD, **cache).last_hidden_state
        shifted_BT = F.pad(label_BT[:, 1:], (0, 1), value=IGNORE)  # position t predicts token t + 1
        wanted_BT = shifted_BT != IGNORE
        logits_NV = logits(self.language_model, hidden_BTD[wanted_BT])
        loss_N = F.cross_entropy(logits_NV, shifted_BT[wanted_BT], reduction="none")
        loss_BT = loss_N.new_zeros(wanted_BT.shape).masked_scatter(wanted_BT, loss_N)
        return loss_BT.sum(1), wanted_BT.sum(1)


def spliced_labels(sample: Tokens, visual_tokens: int) -> list[int]:
    """Labels with :data:`IGNORE` for every visual token.

    Returns:
        Labels of the sequence the language model sees.
    """
    labels: list[int] = []
    for token, label in zip(sample.ids, sample.labels, strict=True):
        labels += [IGNORE] * visual_tokens if token == IMAGE_TOKEN else [label]
    return labels


def _padded(rows: Sequence[Sequence[int]], length: int, value: int) -> Tensor:
    return torch.tensor([[*row[:length], *[value] * (length - len(row))] for row in rows])


def _pad(row_TD: Tensor, length: int) -> Tensor:
    return F.pad(row_TD, (0, 0, 0, length - row_TD.shape[0]))


class Llava(nn.Module):
    """A LLaVA with its tokenizer and conversation template.

    Args:
        tokenizer: fast tokenizer of the language model.
        conversation: name of the template used for questions.

    Raises:
        UserError: if the encoders cannot be interleaved, or do not fit the projectors.
    """

    def __init__(self, encoders: Sequence[Encoder], connector: Connector, tokenizer: Any, conversation: str) -> None:
        super().__init__()
        check_together([encoder.spec for encoder in encoders], "model")
        self.encoders = nn.ModuleList(encoders)
        self.connector = connector
        self.tokenizer = tokenizer
        self.conversation = conversation
        for encoder, projector in zip(encoders, connector.projectors, strict=True):
            width = next(projector.parameters()).shape[1]
            if width != encoder.spec.width:
                raise UserError(
                    f"encoder '{encoder.spec.name}' gives tokens of width {encoder.spec.width}, "
                    f"but its projector takes {width}; only encoders of the same width can be swapped"
                )

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels: the largest of the encoders'."""
        return input_size([cast(Encoder, encoder).spec for encoder in self.encoders])

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer; the first one is that of the loss."""
        return stop_ids(self.tokenizer, TEMPLATES.get(self.conversation))

    def tokens(self, prompt: str, answer: str | None = None) -> Tokens:
        """A question in the model's conversation template.

        Args:
            answer: labelled; None ends the text where generation begins.
        """
        return tokenize(self.tokenizer, pieces(TEMPLATES.get(self.conversation), [(prompt, answer)]))

    def features(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """Tokens of every encoder.

        Args:
            pixels_BCHW: RGB in [0, 1].

        Returns:
            Per encoder, [B, P_e, D_e].
        """
        return encode([cast(Encoder, encoder) for encoder in self.encoders], pixels_BCHW)

    @torch.no_grad()
    def encode_prefix(self, tokens: Tokens) -> Prefix | None:
        """Encodes the text before the image, which no pixel changes: the model is causal.

        Returns:
            For :meth:`answer_loss` of conversations that begin alike; None if there is no image, or nothing before it.
        """
        if IMAGE_TOKEN not in tokens.ids[1:]:
            return None
        ids = tokens.ids[: tokens.ids.index(IMAGE_TOKEN)]
        language_model = self.connector.language_model
        id_1T = torch.tensor([ids], device=next(language_model.parameters()).device)
        return Prefix(ids, decoder(language_model)(input_ids=id_1T, use_cache=True).past_key_values)

    def answer_loss(self, pixels_BCHW: Tensor, tokens: Sequence[Tokens], prefix: Prefix | None = None) -> Tensor:
        """Mean cross-entropy over each sample's answer tokens and end token (protocol section 4.2).

        Args:
            pixels_BCHW: RGB in [0, 1].
            tokens: prompt and answer per sample.
            prefix: that they all begin with, already encoded by these weights in this precision.

        Returns:
            loss_B, float32.
        """
        loss_B, count_B = self.connector(self.features(pixels_BCHW), tokens, max_length=1 << 30, prefix=prefix)
        mean_B: Tensor = loss_B / count_B.clamp(min=1)
        return mean_B

    def targets_loss(self, image_1CHW: Tensor, targets: Sequence[Tokens]) -> Tensor:
        """The answer loss of many answers to one prompt about one image, which are encoded once for all of them.

        The loss of a universal attack: the same values as :meth:`answer_loss` of the image repeated, without repeating
        it. The cached keys and values of the prompt carry the gradient.

        Args:
            image_1CHW: RGB in [0, 1].
            targets: the same prompt with different answers.

        Returns:
            loss_N, float32.

        Raises:
            UserError: if the prompts differ.
        """
        length = next(position for position, label in enumerate(targets[0].labels) if label != IGNORE)
        prompt = targets[0].ids[:length]
        if any(target.ids[:length] != prompt for target in targets):
            raise UserError("targets of different prompts; a prompt that is encoded once has to be the same for all")
        language_model = cast(Any, self.connector.language_model)
        visual_1PD = self.connector.visual_tokens(self.features(image_1CHW))
        prompt_1TD = self.connector.embed(visual_1PD, [prompt])[0][None]
        encoded = decoder(language_model)(inputs_embeds=prompt_1TD, use_cache=True)
        cache = encoded.past_key_values
        cache.batch_repeat_interleave(len(targets))
        longest = max(len(target.ids) for target in targets) - length
        device = image_1CHW.device
        label_NT = _padded([target.labels[length:] for target in targets], longest, IGNORE).to(device)
        # Padding is on the right and the model is causal: whatever stands there is seen by nobody.
        id_NT = _padded([target.ids[length:] for target in targets], longest, 0).to(device)
        words_NTD = language_model.get_input_embeddings()(id_NT)
        answer_NTD = decoder(language_model)(inputs_embeds=words_NTD, past_key_values=cache).last_hidden_state
        last_N1D = encoded.last_hidden_state[:, -1:].expand(len(targets), -1, -1)
        logits_NTV = logits(language_model, torch.cat([last_N1D, answer_NTD[:, :-1]], dim=1))
        loss_NT = F.cross_entropy(logits_NTV.transpose(1, 2), label_NT, ignore_index=IGNORE, reduction="none")
        mean_N: Tensor = loss_NT.sum(1) / (label_NT != IGNORE).sum(1)
        return mean_N

    @torch.no_grad()
    def generate(
        self, pixels_BCHW: Tensor, prompts: Sequence[Tokens], max_new_tokens: int, sampling: Sampling | None = None
    ) -> list[str]:
        """Answers, greedy or drawn.

        Args:
            pixels_BCHW: RGB in [0, 1]: one per conversation, or one for all. Nothing of it is seen where a conversation
                has no image marker.
            prompts: conversations that end where the answer begins.
            max_new_tokens: at most so many tokens.
            sampling: how tokens are drawn; None: greedy.

        Returns:
            One text per sample, without special tokens and outer blanks.
        """
        seen = any(IMAGE_TOKEN in prompt.ids for prompt in prompts)
        image_1CHW = pixels_BCHW[:1]  # of which no token is taken, where there is none to see
        visual_BPD = self.connector.visual_tokens(self.features(pixels_BCHW if seen else image_1CHW))
        visual_BPD = visual_BPD.expand(len(prompts), -1, -1)
        embedded = self.connector.embed(visual_BPD, [prompt.ids for prompt in prompts])
        length = max(row.shape[0] for row in embedded)
        inputs_BTD = torch.stack([F.pad(row, (0, 0, length - row.shape[0], 0)) for row in embedded])
        mask_BT = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in embedded])
        ids_BT = cast(Any, self.connector.language_model).generate(
            inputs_embeds=inputs_BTD,
            attention_mask=mask_BT.to(inputs_BTD.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,  # whatever the language model's own settings say
            logits_processor=None if sampling is None else [Draw(sampling, inputs_BTD.device)],
            pad_token_id=self.stop_ids[0],
            eos_token_id=list(self.stop_ids),
        )
        texts: list[str] = self.tokenizer.batch_decode(ids_BT, skip_special_tokens=True)
        return [text.strip() for text in texts]
