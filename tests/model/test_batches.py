"""Batch N equals batch 1: loss, gradient and attack of a sample do not depend on its batch mates.

For every shipped encoder and for ensembles, over random batches. What is compared must not hide a leak behind
rounding, nor take rounding for a leak:

- :func:`doubled` runs the whole model in float64, so that two ways to compute a number agree to 1e-9, where float32
  logits agree to 1e-6 at best. The path as the worker runs it, in float32, is held to float32's tolerance beside it.
- An attack steps by the sign of the gradient, so that one rounding error at a gradient of zero moves a pixel by a whole
  step. :mod:`tests.attacks.courses` therefore compares step by step, up to the first tie.

Leaky models and attacks, which the same properties have to catch, are at the end.

Shapes: B batch, C channel, H/W image, P visual tokens, D width, T sequence.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rllava.attacks import LossFunction, apgd
from rllava.encoders import Encoder, build_encoder, encoder_spec
from rllava.encoders.tiny import shipped_specs
from rllava.model.assemble import build_connector
from rllava.model.conversation import Tokens
from rllava.model.llava import Llava
from rllava.recipes import PRESETS
from tests.attacks.courses import (
    EXACT,
    Course,
    Look,
    Recorder,
    assert_hardly_any_tie,
    assert_same_look,
    look,
    same_course,
)

SHIPPED = [spec.name for spec in shipped_specs()]
STEPS = 5
PROPERTY = settings(
    phases=[Phase.generate],  # shrinking a failure takes minutes, and a batch is small as it is
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)


def candidates() -> list[tuple[str, ...]]:
    """Every shipped encoder, and an ensemble of each kind whose tokens can be interleaved."""
    fitting: dict[tuple[int, int], list[str]] = {}
    for spec in map(encoder_spec, SHIPPED):
        fitting.setdefault((spec.tokens, spec.image_size), []).append(spec.name)
    ensembles = [(names[0], names[-1]) for names in fitting.values() if len(names) > 1]
    return [*((name,) for name in SHIPPED), *ensembles]


every_candidate = pytest.mark.parametrize("names", candidates(), ids="+".join)


@dataclasses.dataclass(frozen=True)
class Case:
    """One sample of a batch; its seed draws the image and the start of its attack."""

    prompt: str
    answer: str
    image: str
    seed: int


WORDS = st.one_of(
    st.sampled_from(["red", "circle", "is", "there", "a", "teal", "triangle?"]),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=5),
)
TEXTS = st.lists(WORDS, max_size=8).map(" ".join)  # the empty text too
IMAGES = ("noise", "smooth", "constant", "nearly constant", "one pixel")
CASES = st.builds(Case, TEXTS, TEXTS, st.sampled_from(IMAGES), st.integers(0, 2**31))
BATCHES = st.lists(CASES, min_size=1, max_size=5)
COMPANIES = st.lists(CASES, min_size=2, max_size=5)  # alone, a sample is compared with itself
ATTACKS = {
    "epsilon": st.sampled_from([2.0, 8.0, 32.0]),
    "start": st.sampled_from(["clean", "random"]),
    "prefixed": st.booleans(),
}


@st.composite
def rearranged(draw: st.DrawFn) -> tuple[list[Case], list[int]]:
    """A batch, and the places of its samples in another one: permuted, and some of them doubled."""
    batch = draw(COMPANIES)
    places = st.integers(0, len(batch) - 1)
    return batch, [*draw(st.permutations(range(len(batch)))), *draw(st.lists(places, min_size=1, max_size=2))]


def draw_image(case: Case, side: int) -> Tensor:
    """The image of a case, [C, H, W] in [0, 1], in float64."""
    generator = torch.Generator().manual_seed(case.seed)
    noise_CHW = torch.rand(3, side, side, generator=generator, dtype=torch.float64)
    if case.image == "noise":
        return noise_CHW
    if case.image == "smooth":
        return F.interpolate(noise_CHW[None, :, :4, :4], size=(side, side), mode="bilinear")[0]
    # Black, white or grey, so that the bounds of [0, 1] are met.
    constant_CHW = torch.full_like(noise_CHW, (0.0, 1.0, float(noise_CHW[0, 0, 0]))[case.seed % 3])
    if case.image == "nearly constant":
        return (constant_CHW + 1e-6 * (noise_CHW - 0.5)).clamp(0, 1)
    if case.image == "one pixel":
        constant_CHW[:, case.seed % side, case.seed // side % side] = noise_CHW[:, 0, 1]
    return constant_CHW


class _Doubled(TorchFunctionMode):
    """Computes in float64 whatever asks for float32: logits, the norms of a Llama, masks of a loss."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        def double(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        func = Tensor.double if func is Tensor.float else func
        return func(*map(double, args), **{name: double(value) for name, value in (kwargs or {}).items()})


@contextlib.contextmanager
def doubled() -> Iterator[None]:
    """A stretch of code in which nothing is computed in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Doubled():
            yield
    finally:
        torch.set_default_dtype(before)


def build(names: tuple[str, ...], dtype: torch.dtype = torch.float64) -> Llava:
    """An untrained LLaVA on registered encoders."""
    specs = tuple(map(encoder_spec, names))
    connector, tokenizer = build_connector(dataclasses.replace(PRESETS.get("tiny").model, encoders=specs))
    llava = Llava([build_encoder(spec) for spec in specs], connector, tokenizer, "vicuna_v1_short")
    return llava.to(dtype).requires_grad_(False).eval()


make = functools.cache(build)


def arrange(llava: Llava, batch: Sequence[Case]) -> tuple[Tensor, list[Tokens]]:
    """Images and tokens of a batch."""
    images_BCHW = torch.stack([draw_image(case, llava.image_size) for case in batch])
    return images_BCHW, [llava.tokens(f"<image>\n{case.prompt}", case.answer) for case in batch]


def loss_of(llava: Llava, tokens: Sequence[Tokens], prefixed: bool) -> LossFunction:
    """The loss of a batch as attacks want it.

    Prefixed, it computes as the attack worker does: what stands before the images is encoded once.
    """
    prefix = llava.encode_prefix(tokens[0]) if prefixed else None
    return lambda pixels_BCHW, index_B: llava.answer_loss(pixels_BCHW, [tokens[b] for b in index_B.tolist()], prefix)


def looks(llava: Llava, pixels_BCHW: Tensor, tokens: Sequence[Tokens], prefixed: bool = False) -> list[Look]:
    """Loss and gradient of each sample, from one pass over the batch."""
    return look(loss_of(llava, tokens, prefixed), pixels_BCHW, torch.arange(len(tokens)))


Attack = Callable[[LossFunction, Tensor, Sequence[int], float, str], Tensor]
"""From loss, images, seeds of the samples, budget and start to the final images."""


def our_attack(loss: LossFunction, images_BCHW: Tensor, seeds: Sequence[int], epsilon: float, start: str) -> Tensor:
    return apgd(loss, images_BCHW, epsilon=epsilon, steps=STEPS, start=start, seeds=seeds).images_BCHW


def courses(
    llava: Llava, batch: Sequence[Case], attack: Attack, epsilon: float, start: str, prefixed: bool = False
) -> list[Course]:
    """The attacks on the samples of a batch."""
    images_BCHW, tokens = arrange(llava, batch)
    loss = Recorder(loss_of(llava, tokens, prefixed), len(tokens))
    return loss.courses(attack(loss, images_BCHW, [case.seed for case in batch], epsilon, start))


def looks_do_not_depend_on_the_batch(llava: Llava, how: settings) -> None:
    """Loss and gradient in the batch are those alone, in float64 throughout."""

    @settings(how)
    @given(batch=BATCHES, prefixed=st.booleans())
    def each_alone(batch: list[Case], prefixed: bool) -> None:
        with doubled():
            pixels_BCHW, tokens = arrange(llava, batch)
            for b, seen in enumerate(looks(llava, pixels_BCHW, tokens, prefixed)):
                (alone,) = looks(llava, pixels_BCHW[b : b + 1], tokens[b : b + 1])
                assert_same_look(seen, alone, EXACT, EXACT)

    each_alone()


def attacks_do_not_depend_on_the_batch(llava: Llava, attack: Attack, how: settings) -> list[bool]:
    """Attacks in the batch are those alone; tells of each whether it could be followed to its end."""
    whole: list[bool] = []

    @settings(how)
    @given(batch=COMPANIES, **ATTACKS)
    def each_alone(batch: list[Case], epsilon: float, start: str, prefixed: bool) -> None:
        with doubled():
            together = courses(llava, batch, attack, epsilon, start, prefixed)
            alone = [courses(llava, [case], attack, epsilon, start)[0] for case in batch]
        whole.extend(same_course(one, other) for one, other in zip(together, alone, strict=True))

    each_alone()
    return whole


def attacks_follow_their_samples(llava: Llava, attack: Attack, how: settings) -> list[bool]:
    """Attacks in a permuted batch with doubled samples are those of the batch."""
    whole: list[bool] = []

    @settings(how)
    @given(both=rearranged(), **ATTACKS)
    def permuted_and_doubled(both: tuple[list[Case], list[int]], epsilon: float, start: str, prefixed: bool) -> None:
        batch, places = both
        with doubled():
            first = courses(llava, batch, attack, epsilon, start)
            second = courses(llava, [batch[place] for place in places], attack, epsilon, start, prefixed)
        whole.extend(same_course(course, first[place]) for course, place in zip(second, places, strict=True))

    permuted_and_doubled()
    return whole


@every_candidate
def test_loss_and_gradient_in_any_batch_are_those_alone(names: tuple[str, ...]) -> None:
    looks_do_not_depend_on_the_batch(make(names), settings(PROPERTY, max_examples=10))


@every_candidate
@settings(PROPERTY, max_examples=6)
@given(batch=BATCHES)
def test_loss_and_gradient_in_float32_are_those_alone_up_to_rounding(names: tuple[str, ...], batch: list[Case]) -> None:
    llava = make(names, torch.float32)
    pixels_BCHW, tokens = arrange(llava, batch)
    pixels_BCHW = pixels_BCHW.float()
    for b, seen in enumerate(looks(llava, pixels_BCHW, tokens, prefixed=True)):
        (alone,) = looks(llava, pixels_BCHW[b : b + 1], tokens[b : b + 1])
        assert_same_look(seen, alone, 1e-5, 1e-3)


@every_candidate
def test_the_attack_in_any_batch_is_that_alone(names: tuple[str, ...]) -> None:
    assert_hardly_any_tie(
        attacks_do_not_depend_on_the_batch(make(names), our_attack, settings(PROPERTY, max_examples=4))
    )


@every_candidate
def test_permuted_and_doubled_samples_keep_their_attacks(names: tuple[str, ...]) -> None:
    assert_hardly_any_tie(attacks_follow_their_samples(make(names), our_attack, settings(PROPERTY, max_examples=3)))


ONE = candidates()[0]
"""What the leaks are shown with."""


def with_batch_normalised_pixels() -> Llava:
    """Standardises with the mean and deviation of the batch."""
    llava = build(ONE)

    class BatchNormalised(Encoder):
        def __init__(self, inner: Encoder) -> None:
            super().__init__(inner.spec)
            self.inner = inner

        def forward(self, pixels_BCHW: Tensor) -> Tensor:
            deviation = pixels_BCHW.std(unbiased=False) + 0.1
            return self.inner((pixels_BCHW - pixels_BCHW.mean()) / deviation)

    llava.encoders = nn.ModuleList([BatchNormalised(encoder) for encoder in llava.encoders])
    return llava


def with_padding_on_the_left() -> Llava:
    """Gives the language model padding that it attends to, before each shorter sequence."""
    llava = build(ONE)
    inner = llava.connector.language_model.model.forward

    def forward(*arguments: Any, inputs_embeds: Tensor | None = None, **options: Any) -> Any:
        if inputs_embeds is None:
            return inner(*arguments, **options)
        empty_BT = (inputs_embeds == 0).all(-1)
        shifts = empty_BT.sum(1).tolist()
        rolled = [row_TD.roll(shift, 0) for row_TD, shift in zip(inputs_embeds, shifts, strict=True)]
        out = inner(inputs_embeds=torch.stack(rolled), **options)
        back = [row_TD.roll(-shift, 0) for row_TD, shift in zip(out.last_hidden_state, shifts, strict=True)]
        out.last_hidden_state = torch.stack(back)
        return out

    llava.connector.language_model.model.forward = forward
    return llava


def with_the_mean_over_the_longest_answer() -> Llava:
    """Divides each sample's loss by the batch's largest number of answer tokens."""
    llava = build(ONE)
    inner = llava.connector.forward

    def forward(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        loss_B, count_B = inner(*arguments, **options)
        return loss_B, count_B.max().expand_as(count_B)

    llava.connector.forward = forward
    return llava


LEAKY_MODELS = (with_batch_normalised_pixels, with_padding_on_the_left, with_the_mean_over_the_longest_answer)


@pytest.mark.parametrize("spoil", LEAKY_MODELS)
def test_a_leaky_model_is_caught(spoil: Callable[[], Llava]) -> None:
    with pytest.raises(AssertionError):
        looks_do_not_depend_on_the_batch(spoil(), settings(PROPERTY, max_examples=50))


@pytest.mark.parametrize("spoil", LEAKY_MODELS)
def test_the_attack_on_a_leaky_model_is_caught(spoil: Callable[[], Llava]) -> None:
    with pytest.raises(AssertionError):
        attacks_do_not_depend_on_the_batch(spoil(), our_attack, settings(PROPERTY, max_examples=50))


def seeded_by_place(
    loss: LossFunction, images_BCHW: Tensor, seeds: Sequence[int], epsilon: float, start: str
) -> Tensor:
    """Starts from noise that depends on the place in the batch."""
    return our_attack(loss, images_BCHW, range(len(images_BCHW)), epsilon, start)


def best_of_the_batch(loss: Recorder, images_BCHW: Tensor, seeds: Sequence[int], epsilon: float, start: str) -> Tensor:
    """Ends with the points of the step at which the mean loss of the batch was highest."""
    our_attack(loss, images_BCHW, seeds, epsilon, start)
    mean_S = torch.tensor([[seen.loss for seen in row] for row in loss.looks]).mean(0)
    return torch.stack([row[int(mean_S.argmax())].point_CHW for row in loss.looks])


@pytest.mark.parametrize(
    ("attack", "caught_by"),
    [
        (seeded_by_place, attacks_do_not_depend_on_the_batch),
        (seeded_by_place, attacks_follow_their_samples),
        (best_of_the_batch, attacks_do_not_depend_on_the_batch),
    ],
)
def test_a_leaky_attack_is_caught(attack: Attack, caught_by: Callable[..., list[bool]]) -> None:
    with pytest.raises(AssertionError):
        caught_by(make(ONE), attack, settings(PROPERTY, max_examples=50))
