"""Universal images on a tiny LLaVA: what is made, kept while it is in flight, shown, and said of it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rllava.conditions.condition import Condition
from rllava.conditions.shown import Shown
from rllava.conditions.universal import Universal
from rllava.data.benchmarks import BENCHMARK_SCHEMA, BENCHMARKS
from rllava.data.images import PADDING_COLOUR, decode_png, preprocess
from rllava.data.manners import WORDS, rating_prompts, requests, rude_corpus
from rllava.errors import UserError
from rllava.evaluation import universal_image
from rllava.evaluation.samples import Sample, decode_shard
from rllava.evaluation.shard import evaluate_shard
from rllava.evaluation.universal_image import IMAGE, STATE, TRACE, Attempt, MadeImage, make_image, read_image
from rllava.evaluation.victim import Victim
from rllava.image_spec import ImageSpec
from rllava.metrics.judges.lexicon import Lexicon
from rllava.metrics.metric import METRICS
from rllava.model.conversation import IGNORE
from rllava.specs import EvalSpec
from rllava.store import Store
from rllava.tasks.task import Needs
from rllava.universal_spec import EASY_VQA, RECIPES, Corpus, HeldOut, Making, Picture, Recipe
from tests.evaluation.test_shard import PRESET
from tests.model.test_llava import make

PICTURE = Picture(f"{EASY_VQA}train-0000").pinned()
CORPUS = Corpus("rude", rude_corpus()[:12])
STRONG = Recipe("visualadv_strong", steps=20, weigh="targets", momentum=0.9, rate_every=5)
PLAIN = Recipe("visualadv", steps=20)


@pytest.fixture(scope="module")
def victim() -> Victim:
    return Victim(make("tiny-clip", dtype=torch.float32).requires_grad_(False), torch.device("cpu"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(str(tmp_path / "results"))
    found.prepare()
    return found


def spec_of(
    victim: Victim, recipe: Recipe = PLAIN, epsilon: float = 64.0, restart: int = 0, **change: Any
) -> ImageSpec:
    encoders = tuple(encoder.spec for encoder in victim.model("float32").encoders)  # type: ignore[misc]
    model = dataclasses.replace(PRESET.model, encoders=encoders)  # type: ignore[arg-type]
    making = Making(recipe, change.pop("corpus", CORPUS), epsilon, PICTURE, **change)
    return ImageSpec(model, encoders, making, restart)  # type: ignore[arg-type]


def made(victim: Victim, spec: ImageSpec, store: Store, save_every_s: float = 1e9) -> MadeImage:
    artifact = store.artifact("images", spec.name, spec)
    store.finish(artifact, spec, make_image(victim, spec, store, artifact.path, save_every_s))
    return read_image(store, spec)


@pytest.mark.parametrize("recipe", [PLAIN, STRONG])
def test_the_corpus_becomes_likelier_within_the_budget(victim: Victim, store: Store, recipe: Recipe) -> None:
    spec = spec_of(victim, recipe)
    found = made(victim, spec, store)
    clean = preprocess(PICTURE.read(), 64, "crop").astype(int)
    assert 0 < np.abs(found.pixels_HWC.astype(int) - clean).max() == found.facts["linf"] <= 64
    assert found.facts["loss_best"] > found.facts["loss_clean"] + 0.05
    attempt = Attempt(victim, spec)
    image_CHW = victim.pixels([found.pixels_HWC])[0]
    assert attempt.corpus_loss(image_CHW) == pytest.approx(found.facts["loss_best"], abs=1e-6)
    assert set(found.facts["findings"]) <= {"still_rising"}
    artifact = store.artifact("images", spec.name, spec)
    with store.filesystem.open(f"{artifact.path}/{TRACE}", "rb") as file:
        assert pq.read_table(file).num_rows == 20
    assert not store.exists(f"{artifact.path}/{STATE}")
    other = made(victim, dataclasses.replace(spec, restart=1), store)
    assert not np.array_equal(other.pixels_HWC, found.pixels_HWC)


def test_an_image_that_broke_off_again_and_again_ends_with_the_same_bytes(
    victim: Victim, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = HeldOut(rating_prompts()[:4], Lexicon("", ("a", "e", "the")), max_new_tokens=4)
    spec = spec_of(victim, STRONG, held_out=held_out)
    whole = made(victim, spec, store)
    folder = f"{store.root}/images/again"
    step, taken = universal_image.UniversalAttack.step, []

    def breaks(self: Any) -> None:
        step(self)
        taken.append(self.taken)
        if len(taken) % 3 == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(universal_image.UniversalAttack, "step", breaks)
        for _ in range(9):
            with pytest.raises(KeyboardInterrupt):
                make_image(victim, spec, store, folder, 0)
    assert taken[-1] > 15, "nothing was kept"
    facts = make_image(victim, spec, store, folder, 0)
    assert decode_png(store.filesystem.cat_file(f"{folder}/{IMAGE}")).tobytes() == whole.pixels_HWC.tobytes()
    assert facts == dict(whole.facts)


def test_an_image_in_the_making_is_told_of(victim: Victim, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(universal_image, "TELL_EVERY_S", 0.0)
    told: list[tuple[int, float]] = []
    make_image(victim, spec_of(victim), store, f"{store.root}/images/told", 1e9, lambda *news: told.append(news))
    assert [step for step, _ in told] == list(range(1, 21))
    with store.filesystem.open(f"{store.root}/images/told/{TRACE}", "rb") as file:
        losses = pq.read_table(file)["loss"].to_pylist()
    assert [-loss for _, loss in told] == pytest.approx(losses)
    assert min(loss for _, loss in told) > 0, "a cross-entropy"


def test_targets_have_no_end_and_weigh_by_their_tokens_as_published(victim: Victim) -> None:
    attempt = Attempt(victim, spec_of(victim))
    llava = victim.model("float32")
    for target, text in zip(attempt.targets, CORPUS.targets, strict=True):
        said = [label for label in target.labels if label != IGNORE]
        assert llava.tokenizer.decode(said) == f" {text}"
        assert target.ids[-1] not in llava.stop_ids
    assert attempt.weights == [sum(label != IGNORE for label in target.labels) for target in attempt.targets]
    assert len(set(attempt.weights)) > 1
    assert set(Attempt(victim, spec_of(victim, STRONG)).weights) == {1.0}
    before = llava.tokenizer.decode([token for token in attempt.targets[0].ids[:8] if token >= 0])
    assert "USER:" in before
    other = Attempt(victim, spec_of(victim, dataclasses.replace(PLAIN, conversation="llava_llama_2")))
    texts = llava.tokenizer.decode([token for token in other.targets[0].ids if token >= 0])
    assert "[INST]" in texts
    assert texts.endswith(CORPUS.targets[0])


def test_a_target_longer_than_the_context_is_named(victim: Victim) -> None:
    long = Corpus("mine.txt", (*CORPUS.targets, "snorf " * 4000))
    with pytest.raises(UserError, match=r"corpus 'mine.txt': target 13 takes \d+ tokens .* shorten it") as caught:
        Attempt(victim, spec_of(victim, corpus=long))
    assert "\n" not in str(caught.value)


def prompts() -> list[Sample]:
    rows = [
        {"row": row, "sample_id": f"p{row}", "image": None, "prompt": f"<image>\n{text}", "references": []}
        for row, (text, _) in enumerate(requests("forbidden", "benchmark")[:6])
    ]
    table = pa.Table.from_pylist(rows, schema=BENCHMARK_SCHEMA)
    return decode_shard(table, 64, needs=Needs(references=False, image=False))


def records(
    victim: Victim, condition: Condition, samples: list[Sample], batch_size: int = 4, **others: Any
) -> list[dict[str, Any]]:
    image = spec_of(victim)
    spec = EvalSpec("tiny-clip", image.model, image.encoders, BENCHMARKS.get("easy_forbidden"), condition, batch_size)
    metric = METRICS.get("answered")
    ((_, table),) = evaluate_shard(victim, samples, [spec], metric, None, **others)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def test_the_image_is_shown_beside_every_prompt_whatever_the_batch(victim: Victim, store: Store) -> None:
    image = spec_of(victim, restart=1)
    condition = Universal(image.making, 1)
    found = made(victim, image, store)
    how = {"image": lambda spec: read_image(store, spec)}
    rows = records(victim, condition, prompts(), **how)
    assert [(row["condition"], row["kind"], row["epsilon"], row["restart"]) for row in rows] == [
        ("visualadv[20]-v1", "universal", 64.0, 1)
    ] * 6
    assert [row["shown_png"] is not None for row in rows] == [True] * 4 + [False] * 2
    assert np.array_equal(decode_png(rows[0]["shown_png"]), found.pixels_HWC)
    assert all(row["prompt"].startswith("<image>\n") for row in rows)
    assert rows[0]["loss_best"] == found.facts["loss_best"]
    alone = [row for sample in prompts() for row in records(victim, condition, [sample], 1, **how)]
    assert alone == rows
    shown = [row["prediction"] for row in rows]
    (beside,) = {row["clean_png"] for row in rows}
    assert beside is None
    assert shown != [row["clean_prediction"] for row in rows], "the image made no difference to an untrained model"


def test_what_stands_beside_is_shown_as_it_is_called(victim: Victim) -> None:
    side = 64
    no_image, blank, noise = (Shown(what) for what in ("no_image", "blank", "noise"))  # type: ignore[arg-type]
    picture = Shown("picture", PICTURE)
    assert no_image.image(side) is None
    shown = {condition.label: condition.image(side) for condition in (blank, noise, picture)}
    assert {value.shape for value in shown.values() if value is not None} == {(64, 64, 3)}
    assert np.array_equal(shown["blank-v1"][5, 7], PADDING_COLOUR)  # type: ignore[index]
    assert np.array_equal(shown["noise-v1"], noise.image(side))  # type: ignore[arg-type]
    assert picture.label == f"picture-{str(PICTURE.sha256)[:8]}-v1"
    rows = records(victim, no_image, prompts())
    assert all(row["prediction"] == row["clean_prediction"] for row in rows), "there is no image either way"
    assert not any("<image>" in row["prompt"] for row in rows)
    with pytest.raises(ValueError, match="picture"):
        Shown("picture")


def test_a_picture_that_changed_or_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "cat.png"
    file.write_bytes(PICTURE.read())
    pinned = Picture(str(file)).pinned()
    assert pinned.sha256 == PICTURE.sha256
    file.write_bytes(b"no image")
    for attempt, message in (
        (pinned.read, "its SHA-256 is .* bring the file back"),
        (Picture(str(file)).pinned, "cannot be decoded: .*; give another file"),
        (Picture(str(tmp_path)).pinned, "cannot be read"),
        (Picture(f"{EASY_VQA}train-9999").pinned, "has no image 'train-9999'"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_the_published_recipe_takes_the_published_steps() -> None:
    recipe = RECIPES.get("visualadv")
    assert (recipe.steps, recipe.batch, recipe.step_size, recipe.momentum) == (5001, 8, 1.0, 0.0)
    assert (recipe.weigh, recipe.rate_every) == ("tokens", 0)
    assert recipe.label == "visualadv-v1"
    with pytest.raises(ValueError, match="12 targets, and a step of visualadv draws 13"):
        Making(dataclasses.replace(recipe, batch=13), CORPUS, 16.0, PICTURE)
    assert set(WORDS) <= set(" ".join(rude_corpus()).replace(".", "").split())
