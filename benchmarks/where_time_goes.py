"""Where the time of an attack step goes, and how far that is from what the machine's matrix products reach.

    python -m benchmarks.where_time_goes --storage results

An attack of S steps is S + 1 forward and S backward passes and as many updates of its state; its whole time is divided
by S and by the number of samples. One clock is read where the work passes from one part of the model to the next
(module hooks on the way forward, hooks on the gradients of the same tensors on the way back), so that every moment
belongs to one part and the parts sum to the whole. Python between the operators of a part counts to the part;
torch.profiler says how much of the time passes outside of operators. For the CPU, where a call returns when it is done.

Shapes: B batch, C channel, H/W image; an M x K matrix times a K x N one.
"""

import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.common import ready_benchmark, trained_llava, write_sheet
from benchmarks.random_llava import Size, parameters, random_llava
from rllava.attacks.apgd import apgd
from rllava.attacks.common import PIXEL
from rllava.data.benchmarks import BENCHMARKS
from rllava.model.conversation import Tokens
from rllava.model.llava import Llava
from sweeps.console import run_script

ENCODER, PROJECT, LANGUAGE, HEAD = "encoder", "projector and splice", "language model", "LM head and cross-entropy"
ATTACK, REST = "attack arithmetic", "rest (Python between the parts)"
PARTS = (*(f"{part}, {way}" for part in (ENCODER, PROJECT, LANGUAGE, HEAD) for way in ("forward", "backward")),
         ATTACK, REST)  # fmt: skip
"""What a step's time is divided into."""

Product = tuple[int, int, int, bool]
"""A matrix product: M, K, N, and whether the second matrix is stored transposed."""


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        storage: local results folder of an ablation.
        model: candidate trained there.
        size: of the model with random weights.
        seed: of its weights.
        benchmark: name; its samples' first references are attacked.
        epsilon: in 1/255.
        steps: of the attack.
        batch_size: of the trained model.
        large_batch_size: of the random one.
        repeats: of every measurement; medians are reported.
        squares: sides of the square matrices whose products say what the machine can do.
        threads: of PyTorch.
        output: Markdown file to write.
    """

    storage: Path = Path("results")
    model: str = "tiny-tecoa4"
    size: Size = field(default_factory=Size)
    seed: int = 0
    benchmark: str = "easy_captions"
    epsilon: float = 8.0
    steps: int = 5
    batch_size: int = 32
    large_batch_size: int = 4
    repeats: int = 5
    squares: tuple[int, ...] = (256, 512, 1024, 2048)
    threads: int = 2
    output: Path = Path("benchmarks/sheets/where_time_goes.md")


@dataclass(frozen=True)
class Workload:
    """One attack.

    Attributes:
        images_BCHW: clean images in [0, 1].
        tokens: prompt and answer per image.
        epsilon: in 1/255.
    """

    name: str
    llava: Llava
    images_BCHW: Tensor
    tokens: list[Tokens]
    epsilon: float
    steps: int

    @property
    def units(self) -> int:
        """Samples times steps."""
        return len(self.tokens) * self.steps


@dataclass(frozen=True)
class Profile:
    """What a workload was measured to do, per sample and step.

    Attributes:
        total: seconds of the whole attack, median.
        outside: share of the time outside of operators, under torch.profiler.
        products: how often each matrix product is computed by one attack.
    """

    seconds: dict[str, float]
    total: float
    flops: dict[str, float]
    outside: float
    products: Counter[Product]


class Laps:
    """Gives what a clock counts to the part that is under way.

    Args:
        clock: counts seconds, or anything else that only grows.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.spent = dict.fromkeys(PARTS, 0.0)
        self.part, self.since = ATTACK, clock()

    def enter(self, part: str) -> None:
        """Ends a part and begins another."""
        now = self.clock()
        self.spent[self.part] += now - self.since
        self.part, self.since = part, now

    def on_gradient(self, value: Tensor | None, part: str) -> None:
        """Begins a part as soon as the gradient of a tensor is there.

        Args:
            value: whose; nothing happens without one, or without gradient.
        """

        def begin(gradient: Tensor) -> None:
            self.enter(part)

        if value is not None and value.requires_grad:
            cast(Any, value).register_hook(begin)


@contextmanager
def watched(llava: Llava, laps: Laps) -> Iterator[None]:
    """Begins the parts of the model when their turn comes.

    Yields:
        While it is watched.
    """

    def encoder_begins(module: nn.Module, inputs: Any) -> None:
        laps.enter(f"{ENCODER}, forward")

    def encoder_ends(module: nn.Module, inputs: Any, output: Tensor) -> None:
        laps.on_gradient(output, f"{ENCODER}, backward")
        laps.enter(f"{PROJECT}, forward")

    def language_begins(module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        laps.on_gradient(named.get("inputs_embeds"), f"{PROJECT}, backward")
        laps.enter(f"{LANGUAGE}, forward")

    def language_ends(module: nn.Module, inputs: Any, output: Any) -> None:
        laps.on_gradient(output.last_hidden_state, f"{LANGUAGE}, backward")
        laps.enter(f"{HEAD}, forward")

    trunk = cast(Any, llava.connector.language_model).model
    handles = [encoder.register_forward_pre_hook(encoder_begins) for encoder in llava.encoders]
    handles += [encoder.register_forward_hook(encoder_ends) for encoder in llava.encoders]
    handles += [trunk.register_forward_pre_hook(language_begins, with_kwargs=True)]
    handles += [trunk.register_forward_hook(language_ends)]
    handles += [llava.connector.register_forward_hook(lambda module, inputs, output: laps.enter(REST))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def attack(work: Workload, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Runs the attack once.

    Returns:
        What the clock counted in each of :data:`PARTS`.
    """
    laps = Laps(clock)

    def loss(pixels_BCHW: Tensor, index_B: Tensor) -> Tensor:
        laps.enter(REST)
        viewed_BCHW = pixels_BCHW.view_as(pixels_BCHW)  # FlopCounterMode cannot follow a leaf into a module
        loss_B = work.llava.answer_loss(viewed_BCHW, [work.tokens[b] for b in index_B.tolist()])
        laps.on_gradient(loss_B, f"{HEAD}, backward")
        laps.on_gradient(pixels_BCHW, ATTACK)
        laps.enter(ATTACK)
        return loss_B

    with watched(work.llava, laps):
        apgd(loss, work.images_BCHW, epsilon=work.epsilon, steps=work.steps)
    laps.enter(REST)
    return laps.spent


def flop_counter() -> FlopCounterMode:
    """Counts the multiplications and additions of products, convolutions and attention.

    PyTorch's counter passes over its attention on the CPU; here it counts like that on the GPU (of causal attention
    the masked half, too).
    """

    def forward(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
        return int(cast(Any, sdpa_flop_count)(query, key, value))

    def backward(
        gradient: Any, query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **named: Any
    ) -> int:
        return int(cast(Any, sdpa_backward_flop_count)(gradient, query, key, value))

    operators = torch.ops.aten
    return FlopCounterMode(
        display=False,
        custom_mapping={
            operators._scaled_dot_product_flash_attention_for_cpu: forward,
            operators._scaled_dot_product_flash_attention_for_cpu_backward: backward,
        },
    )


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the matrix products that are computed while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counted: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Notes a product and computes it."""
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            left, right = args[-2:]
            self.counted[(*left.shape, right.shape[1], right.stride(0) == 1)] += 1
        return func(*args, **(kwargs or {}))


def outside_operators(work: Workload) -> float:
    """Share of an attack's time that passes outside of operators: in Python.

    Returns:
        In [0, 1].
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        attack(work)
        seconds = time.perf_counter() - started
    inside: float = sum(event.self_cpu_time_total for event in profiler.key_averages()) / 1e6
    return max(0.0, 1 - inside / seconds)


def measure(work: Workload, repeats: int) -> Profile:
    """Times, counts and profiles an attack.

    Args:
        repeats: of the timing, after one run that is not timed.
    """
    with flop_counter() as counter, Products() as products:
        flops = attack(work, counter.get_total_flops)
    runs = [attack(work) for _ in range(repeats)]
    return Profile(
        {part: statistics.median(run[part] for run in runs) / work.units for part in PARTS},
        statistics.median(sum(run.values()) for run in runs) / work.units,
        {part: count / work.units for part, count in flops.items()},
        outside_operators(work),
        products.counted,
    )


def product_seconds(product: Product, repeats: int) -> float:
    """Time of one ``torch.mm`` in float32.

    Args:
        repeats: timed batches of products, of which the fastest counts.
    """
    rows, inner, columns, transposed = product
    left, right = torch.rand(rows, inner), torch.rand(inner, columns)
    right = right.t().contiguous().t() if transposed else right
    calls = max(1, round(2e8 / (2 * rows * inner * columns)))  # some milliseconds
    torch.mm(left, right)
    fastest = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(calls):
            torch.mm(left, right)
        fastest = min(fastest, (time.perf_counter() - started) / calls)
    return fastest


def product_flops(product: Product) -> int:
    """Multiplications and additions of a matrix product."""
    return 2 * product[0] * product[1] * product[2]


def own_rate(products: Counter[Product], repeats: int, shapes: int = 12) -> float:
    """The rate of a model's own matrix products, each computed by itself.

    Args:
        products: how often each is computed.
        shapes: so many are timed, those with the most work.

    Returns:
        Operations per second; nan without products.
    """
    heaviest = sorted(products, key=lambda product: product_flops(product) * products[product])[-shapes:]
    flops = sum(product_flops(product) * products[product] for product in heaviest)
    seconds = sum(product_seconds(product, repeats) * products[product] for product in heaviest)
    return flops / seconds if seconds else float("nan")


def table(work: Workload, found: Profile, machine: float) -> list[tuple[str, ...]]:
    """Rows of the sheet.

    Args:
        machine: its rate, operations per second.

    Returns:
        One row per part, what the medians of the parts leave of the median of the whole, and the whole.
    """
    gap = found.total - sum(found.seconds.values())
    parts = [(part, found.seconds[part], found.flops[part]) for part in PARTS]
    parts += [("not accounted for", gap, 0.0), ("whole", found.total, sum(found.flops.values()))]
    return [
        (
            work.name,
            part,
            f"{1e3 * seconds:.3f}",
            f"{100 * seconds / found.total:.1f}",
            f"{flops / 1e9:.4g}" if flops else "",
            f"{flops / seconds / 1e9:.1f}" if flops else "",
            f"{100 * flops / seconds / machine:.0f}" if flops else "",
        )
        for part, seconds, flops in parts
    ]


def workload(name: str, llava: Llava, options: Options, batch_size: int) -> Workload:
    """An attack on the first samples of the benchmark."""
    benchmark = replace(BENCHMARKS.get(options.benchmark), samples=max(batch_size, 2))  # CIDEr needs two
    samples = ready_benchmark(benchmark, llava.image_size)[0][:batch_size]
    images_BCHW = torch.stack([torch.from_numpy(s.pixels_HWC) for s in samples]).permute(0, 3, 1, 2).float() * PIXEL
    tokens = [llava.tokens(sample.prompt, benchmark.task.labels(sample.references)[0]) for sample in samples]
    return Workload(name, llava, images_BCHW, tokens, options.epsilon, options.steps)


def workloads(options: Options) -> Iterator[Workload]:
    """The trained model and the random one, each built when its turn comes.

    Args:
        options: see :class:`Options`.

    Yields:
        What to measure.
    """
    trained, _ = trained_llava(options.storage, options.model)
    yield workload(options.model, trained, options, options.batch_size)
    large, _ = random_llava(options.size, options.seed)
    yield workload(f"random, {parameters(large) / 1e6:.1f}M", large, options, options.large_batch_size)


def main(options: Options) -> None:
    """Measures and writes the sheet.

    Args:
        options: see :class:`Options`.
    """
    torch.set_num_threads(options.threads)
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    squares: dict[int, float] = {}
    for work in workloads(options):
        squares = squares or square_rates(options.squares, options.repeats)
        machine = max(squares.values())
        found = measure(work, options.repeats)
        own = own_rate(found.products, options.repeats)
        achieved = sum(found.flops.values()) / found.total
        notes.append(
            f"- {work.name}: batches of {len(work.tokens)}, {1 / found.total:.2f} samples x steps/s. "
            f"{achieved / 1e9:.1f} GFLOP/s are {100 * achieved / machine:.0f} % of the machine's rate; its "
            f"own matrix products, each alone, reach {own / 1e9:.1f}.\n  {100 * found.outside:.0f} % of the time "
            "passes outside of operators (torch.profiler, which slows operators down)."
        )
        rows += table(work, found, machine)
    write_sheet(options.output, "Where the time of an attack step goes", introduction(options, squares, notes),
                ("model", "part", "ms per sample and step", "share, %", "GFLOP", "GFLOP/s", "% of the machine's"),
                rows)  # fmt: skip


def square_rates(sides: Sequence[int], repeats: int) -> dict[int, float]:
    """Rates of products of square matrices.

    Returns:
        Side to operations per second.
    """
    products: dict[int, Product] = {side: (side, side, side, False) for side in sides}
    return {side: product_flops(product) / product_seconds(product, repeats) for side, product in products.items()}


def introduction(options: Options, squares: dict[int, float], notes: Sequence[str]) -> str:
    """The text above the table.

    Args:
        squares: rates of square matrix products.
    """
    rates = ", ".join(f"{rate / 1e9:.1f} ({side})" for side, rate in squares.items())
    return "\n".join(
        [
            f"`python -m benchmarks.where_time_goes`: APGD with {options.steps} steps on {options.benchmark}, float32, "
            f"{options.threads} threads",
            f"({platform.machine()}, torch {torch.__version__}); medians of {options.repeats} runs, per sample and "
            "step. S steps are S + 1 forward and S backward passes.",
            f"The machine's rate is the largest of torch.mm on squares, GFLOP/s (side): {rates}.",
            "",
            *notes,
        ]
    )


if __name__ == "__main__":
    run_script(main, Options, __doc__)
