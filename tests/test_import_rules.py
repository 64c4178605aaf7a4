"""Who may import whom: the rules of the design, held by every file of the tree."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rllava", "analysis", "cluster", "sweeps")
PURE = ("rllava.encoders", "rllava.model", "rllava.attacks", "rllava.metrics", "rllava.data")

ADAPTERS = ("rllava.data.ray_dataset", "rllava.training.ray_trainer", "rllava.evaluation.pipeline")
"""The only modules of the library that know Ray."""

LIGHT = ("rllava.records", "rllava.check_list", "rllava.filesystem", "rllava.snapshot", "rllava.errors")
"""What the analysis shares with what writes records."""

GPU_STACK = ("torch", "torchvision", "ray", "transformers", "deepspeed", "timm")


@dataclass(frozen=True)
class Rule:
    """What the modules below some packages must not import.

    Args:
        importers: packages or modules it binds.
        forbidden: packages or modules they must not import, nor anything below.
        but: importers it does not bind.
        allowed: exceptions from ``forbidden``.
    """

    importers: tuple[str, ...]
    forbidden: tuple[str, ...]
    but: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()


RULES = {
    "Ray appears in the library only in its adapters": Rule(("rllava",), ("ray",), but=ADAPTERS),
    "what runs in a plain process does not import the adapters either": Rule(PURE, ADAPTERS, but=ADAPTERS),
    "the library knows neither its users nor the cluster": Rule(("rllava",), ("sweeps", "analysis", "cluster")),
    "the cluster code knows no sweep": Rule(("cluster",), ("sweeps", "analysis")),
    "attacks know no LLaVA": Rule(
        ("rllava.attacks",),
        ("rllava", "transformers", "timm", "deepspeed"),
        allowed=("rllava.attacks", "rllava.check_list", "rllava.errors", "rllava.registry"),
    ),
    "analysis runs without the GPU stack": Rule(("analysis",), (*GPU_STACK, "sweeps", "cluster")),
    "analysis knows the record, not what wrote it": Rule(("analysis",), ("rllava",), allowed=LIGHT),
    "the record needs no GPU stack": Rule(LIGHT, GPU_STACK),
}


def below(name: str, parents: tuple[str, ...]) -> bool:
    """Says whether a module is one of ``parents`` or below one."""
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


def imported_names(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yields line and full name of everything that a module's source imports, at any depth of the source.

    Args:
        source: Python source.
        module: its dotted name, to resolve relative imports.
        is_package: whether it is an ``__init__.py``.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package and node.level == 1 else -node.level + is_package]
                base = ".".join([*parents, *([base] if base else [])])
            for alias in node.names:
                # A name imported from a package may be a module: both spellings count.
                yield node.lineno, f"{base}.{alias.name}"


def is_forbidden(name: str, rule: Rule) -> bool:
    return below(name, rule.forbidden) and not below(name, rule.allowed)


def violations(root: Path) -> list[str]:
    """Returns a line per import in ``root`` that breaks a rule."""
    found = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            relative = path.relative_to(root)
            is_package = path.name == "__init__.py"
            module = ".".join(relative.with_suffix("").parts[: -1 if is_package else None])
            for line, name in imported_names(path.read_text(), module, is_package):
                for text, rule in RULES.items():
                    if below(module, rule.importers) and not below(module, rule.but) and is_forbidden(name, rule):
                        found.append(f"{relative}:{line} imports {name}: {text}")
    return found


def test_the_tree_keeps_the_rules() -> None:
    assert violations(ROOT) == []


def test_the_adapters_exist() -> None:
    for module in ADAPTERS:
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module


@pytest.mark.parametrize(
    ("path", "line", "breaks"),
    [
        ("rllava/encoders/clip.py", "import ray", "Ray appears"),
        ("rllava/training/loop.py", "def f():\n    from ray import train", "Ray appears"),
        ("rllava/data/shards.py", "from rllava.data.ray_dataset import read", "does not import the adapters"),
        ("rllava/data/shards.py", "from . import ray_dataset", "does not import the adapters"),
        ("rllava/model/__init__.py", "from ..training import ray_trainer", "does not import the adapters"),
        ("rllava/attacks/apgd.py", "from rllava.model.llava import Llava", "attacks know no LLaVA"),
        ("rllava/attacks/apgd.py", "from rllava import encoders", "attacks know no LLaVA"),
        ("rllava/attacks/apgd.py", "from ..model import llava", "attacks know no LLaVA"),
        ("rllava/evaluation/worker.py", "from cluster.placement import place", "neither its users nor the cluster"),
        ("rllava/store.py", "import sweeps.presets", "neither its users nor the cluster"),
        ("cluster/connect.py", "import sweeps", "knows no sweep"),
        ("analysis/plots.py", "import torch.nn", "without the GPU stack"),
        ("analysis/plots.py", "from rllava.store import Store", "knows the record"),
        ("analysis/plots.py", "import rllava", "knows the record"),
        ("rllava/records.py", "import torch", "needs no GPU stack"),
    ],
)
def test_the_checker_sees_a_violation(path: str, line: str, breaks: str, tmp_path: Path) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(line)
    found = violations(tmp_path)
    assert any(breaks in text and text.startswith(path) for text in found), found


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("rllava/data/ray_dataset.py", "import ray.data"),
        ("rllava/training/ray_trainer.py", "from ray.train import report\nfrom rllava.training import loop"),
        ("rllava/attacks/apgd.py", "from rllava.errors import UserError\nfrom . import common\nimport torch"),
        ("analysis/plots.py", "from rllava.records import KEY\nimport altair"),
        ("sweeps/encoder_ablation.py", "import ray, analysis, cluster.connect, rllava.model"),
        ("rllava/model/llava.py", "import raymond"),
    ],
)
def test_the_checker_lets_the_allowed_through(path: str, line: str, tmp_path: Path) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(line)
    assert violations(tmp_path) == []


@pytest.mark.parametrize(
    ("packages", "absent"), [(("analysis",), GPU_STACK), (PURE, ("ray",))], ids=["analysis", "plain process"]
)
def test_importing_everything_loads_no_more(packages: tuple[str, ...], absent: tuple[str, ...]) -> None:
    """What the packages they use load counts too, so this asks the interpreter."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in packages
        for path in (ROOT / package.replace(".", "/")).rglob("*.py")
        if path.name != "__init__.py"
    ]
    wanted = [module for module in modules if module not in ADAPTERS]
    script = f"import sys; {'; '.join(f'import {m}' for m in wanted)}; print({{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not ast.literal_eval(done.stdout) & set(absent)
