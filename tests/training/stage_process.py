"""One worker of a training stage without Ray: started once per rank by the tests.

RANK=0 WORLD_SIZE=2 ... python -m tests.training.stage_process '{"zero": 3, ...}'
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from rllava.data.stream import MicroBatch
from rllava.encoders import build_encoder, encoder_spec
from rllava.model.assemble import build_connector
from rllava.recipes import PRESETS
from rllava.specs import Rates
from rllava.training.loop import Progress, train_stage

QUESTION = "what color is the shape?"
WORDS = ("red", "teal", "blue", "gray")


def portions(
    step: int, micro: int, accumulation: int, rank: int, world: int, *, text_alone: bool = False
) -> Iterator[MicroBatch]:
    """Random images whose rows depend on their position alone; or questions without image."""
    position = step * accumulation
    while True:
        generator = np.random.default_rng(position * world + rank)
        pixels = generator.integers(0, 256, (micro, 64, 64, 3), dtype=np.uint8)
        texts = [
            json.dumps(
                [
                    {"from": "human", "value": "what color is it?" if text_alone else f"<image>\n{QUESTION}"},
                    {"from": "gpt", "value": WORDS[generator.integers(4)]},
                ]
            )
            for _ in range(micro)
        ]
        yield MicroBatch(pixels, texts, [None] * micro, [(position * world + rank) * micro + n for n in range(micro)])
        position += 1


def main() -> None:
    options = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    spec = replace(PRESETS.get("tiny").model, encoders=(encoder_spec("tiny-clip"),))
    stage = replace(
        spec.stages[1],
        steps=options["steps"],
        global_batch=8,
        micro_batch=options["micro"],
        zero_stage=options["zero"],
        rates=Rates(**options["rates"]),
        warmup=options.get("warmup", 0.03),
        objective=options.get("objective", "llava"),
        gradient_checkpointing=options.get("gradient_checkpointing", False),
    )
    connector, tokenizer = build_connector(spec)
    seen: list[float] = []
    out = Path(options["out"])

    def save(write: object, progress: Progress) -> None:
        write(out / f"checkpoint-{progress.step}")  # type: ignore[operator]
        dist.barrier()
        if options.get("die_at") == progress.step:
            os._exit(9)

    state = train_stage(
        stage,
        [build_encoder(spec.encoders[0])],
        connector,
        tokenizer,
        lambda step: portions(
            step,
            options["micro"],
            8 // (options["micro"] * world),
            rank,
            world,
            text_alone=rank in options.get("text_alone", ()),
        ),
        resume=Path(options["resume"]) if options.get("resume") else None,
        checkpoint_every=2,
        save=save,
        report=lambda progress: seen.append(progress.loss),
    )
    if rank == 0:
        save_file({key: value.contiguous() for key, value in state.items()}, out / "weights.safetensors")
        (out / "losses.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
