"""Memory that a plan predicts, beside PyTorch's own tracker at 7B, and beside what processes really take.

    python -m benchmarks.plan_memory [--output FILE]

The tracker (``torch.distributed._tools.mem_tracker``) follows the real modules through a step on fake tensors. The real
steps run in processes of their own on models that fit, with random weights: on a GPU, if there is one, the allocator
says what they took at most; on a CPU, the kernel does (the largest resident set, less that before the step).
"""

import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from torch.distributed._tools.mem_tracker import MemTracker

from rllava.counting import emptied, without_content
from rllava.encoders import encoder_spec
from rllava.encoders.base import bare_encoder, encode, input_size
from rllava.footprint import Llava, Texts, attack_step
from rllava.model.causal_lm import decoder, logits
from rllava.model.llava import Connector, build_projector
from rllava.model.shapes import PUBLISHED, bare_language_model, llama

TEXTS = Texts(35, 20, 12)
TRACKED = Texts(0, 55, 12)
"""The same without a prefix of its own: PyTorch's tracker follows one call of every module, and a prefix is another."""

MIB = 2.0**20


@dataclass(frozen=True)
class Options:
    """What is compared.

    Attributes:
        output: Markdown file; none: the table is printed alone.
        real: only run the real step of this case, and print its peak in bytes: what the processes of a run do.
        batch: samples of that step.
    """

    output: Path | None = None
    real: str = ""
    batch: int = 1


def seven_b(*names: str) -> Llava:
    """A LLaVA of published shapes."""
    shape = llama(PUBLISHED["vicuna-7b-v1.5"].arguments, "published")
    return Llava(tuple(map(encoder_spec, names)), shape, "mlp2x_gelu")


def middling(name: str) -> Llava:
    """A LLaVA whose attack step a laptop can hold: a real encoder and a Llama of 12 layers."""
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 8000}
    shape = llama(sizes | {"num_attention_heads": 12, "num_key_value_heads": 12}, "middling")
    return Llava((encoder_spec(name),), shape, "mlp2x_gelu")


def parts(llava: Llava, dtype: torch.dtype, fake: bool) -> tuple[list[Any], Any]:
    """Encoders and connector with the real architecture; random weights, or none, on the meta device."""
    with torch.device("meta" if fake else "cpu"):
        encoders: list[Any] = [bare_encoder(spec).requires_grad_(False).eval() for spec in llava.encoders]
        projectors = [build_projector(llava.projector, spec.width, llava.width) for spec in llava.encoders]
    model = bare_language_model(llava.language_model.config)
    if not fake:
        model = model.to_empty(device="cpu")
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.02)
    connector = Connector(projectors, model).requires_grad_(False).eval()
    if fake:
        return encoders, connector
    return [encoder.to(dtype) for encoder in encoders], connector.to(dtype)


def step(encoders: list[Any], connector: Any, pixels_BCHW: Tensor, dtype: torch.dtype, texts: Texts = TEXTS) -> Tensor:
    """The gradient of the answers' loss to the pixels, as an attack takes it; the prefix is cached."""
    model, batch = connector.language_model, pixels_BCHW.shape[0]
    cache: dict[str, Any] = {"use_cache": False}
    if texts.before:
        with torch.no_grad():
            before_BTD = torch.zeros(batch, texts.before, decoder(model).config.hidden_size, dtype=dtype)
            cache = {"past_key_values": decoder(model)(inputs_embeds=before_BTD, use_cache=True).past_key_values}
    visual_BPD = connector.visual_tokens(encode(encoders, pixels_BCHW))
    word_BTD = torch.zeros(batch, texts.after + texts.answer, visual_BPD.shape[2], dtype=dtype)
    inputs_BTD = torch.cat([visual_BPD, word_BTD], dim=1)
    hidden_BTD = decoder(model)(inputs_embeds=inputs_BTD, **cache).last_hidden_state
    logits_NV = logits(model, hidden_BTD[:, -texts.answer :].flatten(0, 1))
    loss = torch.nn.functional.cross_entropy(logits_NV, torch.zeros(logits_NV.shape[0], dtype=torch.int64))
    return torch.autograd.grad(loss, pixels_BCHW)[0]


class FrozenTracker(MemTracker):  # type: ignore[no-untyped-call]
    """PyTorch's tracker for models that get no gradients: a weight without one takes no hook."""

    def _track_module_params_and_buffers(self, module: Any, install_grad_hooks: bool = True) -> tuple[int, int]:
        return super()._track_module_params_and_buffers(module, install_grad_hooks=False)


def tracked(llava: Llava, precision: str, batch: int) -> float:
    """Bytes at the peak of a step, as PyTorch's tracker sees it on fake tensors."""
    dtype = getattr(torch, precision)
    encoders, connector = parts(llava, dtype, fake=True)  # some constructors look at numbers
    with without_content():
        encoders, connector = [emptied(encoder, dtype) for encoder in encoders], emptied(connector, dtype)
        pixels_BCHW = torch.empty(batch, 3, *[input_size(llava.encoders)] * 2, requires_grad=True)
        tracker = FrozenTracker()
        tracker.track_external(*encoders, connector, pixels_BCHW)
        with tracker:
            # A copy: the tracker's hooks on the inputs of modules stop at a leaf.
            step(encoders, connector, pixels_BCHW.clone(), dtype, TRACKED)
        peaks = tracker.get_tracker_snapshot("peak")
    return float(max(found["Total"] for found in peaks.values()))


def real_peak(name: str, batch: int) -> float:
    """Bytes that a real step takes at most on top of the weights, in this process."""
    torch.manual_seed(0)
    llava, device = middling(name), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoders, connector = parts(llava, torch.float32, fake=False)
    pixels_BCHW = torch.rand(batch, 3, *[input_size(llava.encoders)] * 2, requires_grad=True)
    if device.type == "cuda":
        with torch.device(device):
            moved = [entry.to(device) for entry in encoders]
            before = torch.cuda.memory_allocated()
            step(moved, connector.to(device), pixels_BCHW.to(device).detach().requires_grad_(True), torch.float32)
            return float(torch.cuda.max_memory_allocated() - before)
    step(encoders, connector, pixels_BCHW[:1].detach().requires_grad_(True), torch.float32)  # what is made once
    before = resident()
    step(encoders, connector, pixels_BCHW, torch.float32)
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measured(name: str, batch: int) -> float:
    """:func:`real_peak` in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.plan_memory", "--real", name, "--batch", str(batch)]
    # Blocks are given back to the system when they are freed, so that the resident set is what is held.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return float(done.stdout.split()[-1])


def sheet() -> str:
    """The comparison as Markdown."""
    lines = [
        "# Memory: predicted, tracked, measured",
        "",
        f"`python -m benchmarks.plan_memory` (torch {torch.__version__}); an attack step, prompt {TEXTS.before} and "
        f"{TEXTS.after} tokens around the image, answer {TEXTS.answer}.",
        "",
        "| LLaVA | precision | samples | truth | predicted, GiB | truth, GiB | off by, % |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for names, precision, batch in (
        (("clip-l-336",), "float16", 1), (("advxl-g",), "float16", 4), (("clip-l-336", "advxl-h"), "float32", 1),
    ):  # fmt: skip
        llava = seven_b(*names)
        lines.append(
            _line(f"7B, {'+'.join(names)}", precision, batch, "PyTorch's tracker",
                  attack_step(llava, TRACKED, precision, batch).memory, tracked(llava, precision, batch))
        )  # fmt: skip
    where = "GPU allocator" if torch.cuda.is_available() else "resident set, on top of the weights"
    for name, batch in (("clip-l-224", 4), ("ares-vit-b-at", 8)):
        predicted = attack_step(middling(name), TEXTS, "float32", batch).activations
        lines.append(_line(f"Llama 768x12, {name}", "float32", batch, where, predicted, measured(name, batch)))
    return "\n".join(lines) + "\n"


def _line(what: str, precision: str, batch: int, truth: str, predicted: float, found: float) -> str:
    off = 100 * (predicted / found - 1)
    gib = 2.0**30
    return f"| {what} | {precision} | {batch} | {truth} | {predicted / gib:.3f} | {found / gib:.3f} | {off:+.1f} |"


def main(options: Options) -> None:
    """Runs the comparison, or one real step."""
    if options.real:
        print(real_peak(options.real, options.batch))
        return
    text = sheet()
    print(text)
    if options.output is not None:
        options.output.write_text(text)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
