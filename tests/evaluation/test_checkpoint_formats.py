"""The same LLaVA in every format of checkpoints is attacked to the same records."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rllava.attacks.protocols import PROTOCOLS, in_precision
from rllava.conditions.attack import within
from rllava.data.benchmarks import BENCHMARKS
from rllava.evaluation.samples import decode_shard
from rllava.evaluation.shard import evaluate_shard
from rllava.evaluation.victim import PRECISIONS, Victim
from rllava.metrics.metric import METRICS
from rllava.model.checkpoint import load_checkpoint, read_checkpoint
from rllava.model.checkpoint_spec import pin_checkpoint
from rllava.model.language import TINY_LLAMA, load_language_model
from rllava.specs import EvalSpec
from tests.evaluation.test_shard import shard
from tests.sweeps.test_evaluate import write_llava, write_tower

SAMPLES = 8


def write_like_the_original(folder: Path, tower: Path, projector: dict[str, Tensor], alone: bool) -> Path:
    """As LLaVA saves after stage 2, or (alone) after stage 1."""
    language_model, tokenizer = load_language_model(TINY_LLAMA)
    folder.mkdir()
    settings = {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_vision_tower": str(tower),
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 32,
        "use_mm_proj": True,
        "image_aspect_ratio": "pad",
    }
    (folder / "config.json").write_text(json.dumps({**language_model.config.to_dict(), **settings}))
    state = {f"model.mm_projector.{name}": value for name, value in projector.items()}
    if alone:
        torch.save(state, folder / "mm_projector.bin")
        language_model.save_pretrained(folder.parent / "language_model")
        tokenizer.save_pretrained(folder.parent / "language_model")
        return folder
    tokenizer.save_pretrained(folder)
    whole = {name: value.clone() for name, value in {**language_model.state_dict(), **state}.items()}
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_format_of_a_checkpoint_makes_no_difference(precision: str, tmp_path: Path) -> None:
    tower = write_tower(tmp_path / "tower", 0)
    hugging_face = write_llava(tmp_path / "hugging_face", tower)
    (tower / "preprocessor_config.json").unlink(missing_ok=True)
    projector: dict[str, Tensor] = load_checkpoint(read(hugging_face)).connector.projectors[0].state_dict()
    original = write_like_the_original(tmp_path / "original", tower, projector, alone=False)
    alone = write_like_the_original(tmp_path / "projector", tower, projector, alone=True)
    specs = [read(hugging_face), read(original), read(alone, language_model=str(tmp_path / "language_model"))]
    assert [spec.format for spec in specs] == ["hugging_face", "original", "projector"]
    found = [attacked(spec, getattr(torch, precision)) for spec in specs]
    assert any(row["epsilon"] > 0 and row["steps"] for row in found[0]), "nothing was attacked"
    assert found[1] == found[0]
    assert found[2] == found[0]


def read(folder: Path, **options: Any) -> Any:
    return pin_checkpoint(read_checkpoint(str(folder), conversation="vicuna_v1_short", **options))


def attacked(spec: Any, dtype: torch.dtype) -> list[dict[str, Any]]:
    """What records say, but for losses and images: memory is laid out in other ways, so sums are rounded in others."""
    llava = load_checkpoint(spec, dtype=dtype)
    benchmark = replace(BENCHMARKS.get("easy_vqa"), samples=SAMPLES)
    samples = decode_shard(shard("easy_vqa", SAMPLES), llava.image_size)
    metric = METRICS.get(benchmark.task.metric)
    protocol = in_precision(PROTOCOLS.get("paper_ensemble_3steps"), PRECISIONS[dtype])
    evaluations = [
        EvalSpec("any", spec, spec.encoders, benchmark, within(protocol, epsilon), SAMPLES) for epsilon in (0.0, 8.0)
    ]
    worker = Victim(llava, torch.device("cpu"))
    state = metric.prepare([sample.references for sample in samples])
    columns = ["sample_id", "epsilon", "clean_prediction", "prediction", "score", "steps", "rounds", "linf"]
    return [
        row
        for _, table in evaluate_shard(worker, samples, evaluations, metric, state)
        for row in table.select(columns).to_pylist()
    ]
