"""The benchmark of adversarial fine-tuning at the smallest size: what it compares and counts is right."""

from pathlib import Path

import pytest
import torch

from benchmarks import published_robust_clip
from benchmarks.published_robust_clip import Options, cases, operations, same_training, speed
from benchmarks.robust_clip_scripts import ROBUSTVLM, SIMCLIP, Size
from rllava.errors import UserError

TINY = Size(image_size=28, patch_size=14, width=32, layers=1, head_width=16)

SCRIPT = '''
"""Has the interface of the published training, and is short."""
import torch
import torch.nn.functional as F
import wandb
from CLIP_eval.eval_utils import load_clip_model
from train.datasets import ImageNetDataset
from train.pgd_train import pgd
from training.scheduler import cosine_lr


class ClipVisionModel(torch.nn.Module):
    def __init__(self, model, args, normalize):
        super().__init__()
        self.model, self.normalize = model, normalize

    def forward(self, vision, output_normalize):
        found = self.model(self.normalize(vision))
        return F.normalize(found, dim=-1) if output_normalize else found


def train_one_epoch(step_total, model, model_orig, dataloader, optimizer, scheduler, normalize,
                    embedding_text_labels_norm, args, epoch, dataloader_eval=None):
    model_orig.eval()
    for data, targets in dataloader:
        with torch.no_grad():
            held = model_orig(data.cuda(), args.output_normalize)

        def loss_of(found, _):
            if args.loss == "l2":
                return (found - held).square().sum(1).mean()
            return F.cross_entropy(found @ (100.0 * embedding_text_labels_norm), targets)

        model.eval()
        noise = torch.zeros_like(data).uniform_(-args.eps, args.eps)
        images = pgd(forward=model, loss_fn=loss_of, data_clean=data, targets=targets, args=args, start=noise)
        model.train()
        model(data, args.output_normalize)
        loss = loss_of(model(images, args.output_normalize), None)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step_total += 1
        scheduler(step_total)
        wandb.log({"loss-total": loss.item()})
        if step_total >= args.steps:
            break
    return step_total
'''
PGD = """
import torch
from vlm_eval.attacks.utils import rise


def pgd(forward, loss_fn, data_clean, targets, args, start):
    delta, velocity = start, torch.zeros_like(start)
    for _ in range(args.iterations_adv):
        delta = delta.detach().requires_grad_(True)
        loss = loss_fn(forward(data_clean + delta, args.output_normalize), targets)
        (gradient,) = torch.autograd.grad(loss, delta)
        velocity = (0.9 * velocity + gradient.sign()).sign()
        delta = rise(delta, args.stepsize_adv * velocity).clamp(-args.eps, args.eps)
        delta = (data_clean + delta).clamp(0, 1) - data_clean
    return (data_clean + delta).detach()
"""


def checkout(folder: Path, script: str = SCRIPT, rise: str = "delta + step") -> Path:
    for name, text in {
        ROBUSTVLM: script, SIMCLIP: script, "train/pgd_train.py": PGD,
        "vlm_eval/attacks/utils.py": f"def rise(delta, step):\n    return {rise}\n",
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_robust_clip, "SMALL", TINY)


def options(folder: Path, **changes: object) -> Options:
    return Options(folder, folder, same_steps=5, batch=2, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["FARE", "TeCoA"])
def test_both_sides_come_to_the_same_weights_and_another_order_to_others(name: str, tmp_path: Path) -> None:
    same, other = options(checkout(tmp_path / "same")), tmp_path / "other"
    case = next(case for case in cases(same) if case.name == name)
    gap = same_training(case, same, torch.float64)
    assert gap.tie is None
    assert gap.losses < 1e-9
    assert gap.weights < 1e-12  # ways are 1e-3 and longer
    assert gap.moved > 1e-3
    # The schedule before the update, as one would write it, is another training.
    early = "        optimizer.step()\n        optimizer.zero_grad()\n        step_total += 1\n"
    moved = SCRIPT.replace(early, "        step_total += 1\n        optimizer.zero_grad()\n").replace(
        "scheduler(step_total)\n", "scheduler(step_total)\n        loss.backward()\n        optimizer.step()\n"
    )
    moved = moved.replace("        loss.backward()\n        step_total", "        step_total")
    assert moved != SCRIPT
    gap = same_training(case, options(checkout(other, moved)), torch.float64)
    assert gap.weights > 1e-6


def test_an_attack_that_goes_another_way_is_a_tie_at_its_step(tmp_path: Path) -> None:
    other = options(checkout(tmp_path, rise="delta - step"))
    assert same_training(cases(other)[0], other, torch.float64).tie == 1


def test_time_and_operations_are_of_both_sides(tmp_path: Path) -> None:
    chosen = options(checkout(tmp_path), steps=2, repeats=1, size=TINY)
    found = speed(cases(chosen)[0], chosen)
    # Ours leaves out a forward pass of the clean images, one of 25 or so.
    assert 1.01 < found.possible < 1.1
    assert len(found.published_seconds) == len(found.our_seconds) == 2
    assert found.measured > 0
    assert operations(lambda: torch.ones(2, 3) @ torch.ones(3, 4)) == 2 * 2 * 3 * 4


def test_a_folder_without_the_code_is_named(tmp_path: Path) -> None:
    chosen = options(tmp_path)
    for index, option in ((0, "--robustvlm"), (2, "--simclip")):
        with pytest.raises(UserError, match=f"is not there; {option} takes the folder of a checkout"):
            same_training(cases(chosen)[index], chosen, torch.float64)
