"""The benchmark of universal images at the smallest size: what it counts and compares is right."""

from pathlib import Path

import pytest
import torch

from benchmarks import published_universal
from benchmarks.published_universal import CODE, Options, attempt_on, same_image, same_points, speed
from benchmarks.random_llava import Size
from rllava.errors import UserError

TINY = Size(image_size=16, patch=8, tower_width=64, width=64, layers=1, vocabulary=500)

STAND_IN = '''
"""Has the interface of the published attack: noise against the sign of the gradient of the mean over all tokens."""
import random

import torch
from llava_llama_2_utils import generator, prompt_wrapper
from torchvision.utils import save_image

MEAN, STD = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class Attacker:
    def __init__(self, args, model, tokenizer, targets, device):
        self.args, self.model, self.tokenizer, self.targets = args, model, tokenizer, targets

    def attack_constrained(self, text_prompt, img, batch_size, num_iter, alpha, epsilon):
        mean, std = (torch.tensor(values).cuda()[None, :, None, None] for values in (MEAN, STD))
        clean = img * std + mean
        noise = torch.rand_like(img) * 2 * epsilon - epsilon
        prompt = prompt_wrapper.Prompt(self.model, self.tokenizer, text_prompts=text_prompt)
        for step in range(num_iter + 1):
            leaf = noise.clone().requires_grad_(True)
            loss = self.attack_loss(prompt, (clean + leaf - mean) / std, random.sample(self.targets, batch_size))
            loss.backward()
            noise = SIGN(noise, alpha * leaf.grad.sign()).clamp(-epsilon, epsilon)
            noise = (clean + noise).clamp(0, 1) - clean
            if step % 100 == 0:
                save_image((clean + noise).squeeze(0), f"{self.args.save_dir}/{step}.bmp")

    def attack_loss(self, prompts, images, targets):
        rows = [torch.tensor([ids[1:]]) for ids in self.tokenizer(targets).input_ids]
        context, length = prompts.input_ids[0], prompts.context_length[0]
        longest = length + max(row.shape[1] for row in rows)
        ids, labels, mask = [], [], []
        for row in rows:
            rest = longest - length - row.shape[1]
            ids.append(torch.cat([context, row, torch.zeros(1, rest, dtype=torch.long)], 1))
            blank = torch.full((1, length), -100)
            labels.append(torch.cat([blank, row, torch.full((1, rest), -100)], 1))
            mask.append(torch.tensor([[1] * (longest - rest) + [0] * rest]))
        said = {"input_ids": torch.cat(ids), "attention_mask": torch.cat(mask), "labels": torch.cat(labels)}
        return self.model(images=images.repeat(len(targets), 1, 1, 1).half(), return_dict=True, **said).loss


def SIGN(noise, step):
    return noise - step
'''


def checkout(folder: Path, code: str = STAND_IN) -> Path:
    path = folder / CODE
    path.parent.mkdir(parents=True)
    path.write_text(code)
    return folder


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_universal, "SMALL", TINY)


def test_both_sides_make_the_same_image_and_another_rule_another(tmp_path: Path) -> None:
    same = Options(checkout(tmp_path / "same"), same_steps=100)
    assert same_image(same) < 1e-9
    wrong = Options(checkout(tmp_path / "wrong", STAND_IN.replace("noise - step", "noise + step")), same_steps=100)
    assert same_image(wrong) > 1


def test_loss_and_gradient_are_compared_where_the_published_side_goes(tmp_path: Path) -> None:
    same = same_points(Options(checkout(tmp_path / "same"), same_steps=100))
    assert same.points == 101
    # Rounding of float32, through one layer; where a gradient is all but zero, its sign is rounding alone.
    assert same.loss < 1e-5
    assert same.gradient < 1e-4
    assert same.signs < 0.01
    other = STAND_IN.replace("return self.model(", "return 1.01 * self.model(")
    wrong = same_points(Options(checkout(tmp_path / "wrong", other), same_steps=100))
    assert wrong.loss == pytest.approx(0.0099, abs=1e-4)
    assert wrong.gradient == pytest.approx(0.0099, abs=1e-4)


def test_operations_are_counted_on_both_sides(tmp_path: Path) -> None:
    options = Options(checkout(tmp_path), steps=1, repeats=1, size=TINY)
    found = speed(options, attempt_on(TINY, options, 1, torch.float32))
    # Eight targets: the published side encodes image and prompt eight times.
    assert 2 < found.possible < 8
    assert len(found.published_seconds) == len(found.our_seconds) == 1
    assert found.measured > 0


def test_a_folder_without_the_code_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"visual_attacker.py is not there; --visualadv takes"):
        same_image(Options(tmp_path, same_steps=100))
