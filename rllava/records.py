"""The record: one row of results, the contract between evaluation (which writes it) and analysis (which reads it).

A record is one answer of one evaluation: what a candidate said to a sample under a condition, at a budget or severity.
The clean answers are a condition of their own, of epsilon 0. Names are for people, and a storage may hold two recipes
that share them all; the fingerprints (``model``, ``recipe``, ``evaluation``) tell those apart.

Scores are in the units of the paper's tables: VQA accuracy in percent, CIDEr times 100. Budgets and norms are in units
of 1/255. This module needs pyarrow alone, so that a notebook can open results without the GPU stack.
"""

import pyarrow as pa

CLEAN = "clean"
"""Kind and label of the condition of clean answers; their epsilon is 0."""

SMALLEST = "smallest_budget"
"""Kind of the conditions that look for the smallest budget at which a sample is beaten."""

RECORD_VERSION = 6
"""Raised when a column joins, leaves or means something else."""

_COLUMNS: list[tuple[str, pa.DataType, str]] = [
    ("candidate", pa.string(), "a: end-to-end on encoder a; a+b: ensemble; b@a: b plugged into the LLaVA of a"),
    ("benchmark", pa.string(), "data set + prompt + metric"),
    ("sample_id", pa.string(), "unique within the benchmark"),
    ("condition", pa.string(), "what the model was shown, name and version: clean, paper_ensemble-v1, fog-v1"),
    ("kind", pa.string(), "of the condition: clean, attack, corruption, or a plug-in's own word"),
    ("epsilon", pa.float64(), "budget, L-inf, in 1/255; 0: the clean image; null where a condition has none"),
    ("beaten_at", pa.float64(), "of smallest_budget: where it was beaten, in 1/255; 0: clean; null: not up to epsilon"),
    ("severity", pa.int32(), "of a corruption, from 1; null where a condition has none"),
    ("restart", pa.int32(), "number of an image that was made several times; null where a condition has none"),
    ("seed", pa.int64(), "training seed of the candidate's LLaVA; null for a checkpoint from elsewhere"),
    ("draw", pa.int32(), "number of a drawn answer; 0: the greedy one"),
    ("model", pa.string(), "fingerprint of the candidate: its LLaVA as trained, the encoders it is judged with"),
    ("recipe", pa.string(), "the same whatever the training seed: what trainings of one candidate share"),
    ("evaluation", pa.string(), "fingerprint of the evaluation, which decides all else; ends its artifact's name"),
    ("prompt", pa.string(), "the user's turn, image marker included"),
    ("question", pa.string(), "what judges are told was asked, where that is not the prompt"),
    ("references", pa.list_(pa.string()), "reference captions or annotators' answers"),
    ("clean_prediction", pa.string(), "answer to the clean image"),
    ("prediction", pa.string(), "answer to what was shown: of an attack the worst image, at epsilon 0 the clean one"),
    ("clean_score", pa.float64(), "metric of clean_prediction"),
    ("score", pa.float64(), "metric of prediction: the worst case over the protocol's rounds"),
    ("prediction_8bit", pa.string(), "answer to the adversarial image rounded to 8 bits"),
    ("score_8bit", pa.float64(), "metric of prediction_8bit"),
    ("linf", pa.float64(), "largest absolute pixel change of the scored image, in 1/255; at most epsilon"),
    ("steps", pa.int32(), "gradient steps over all rounds"),
    ("rounds", pa.list_(pa.string()), "rounds that attacked this sample, in order"),
    ("round_epsilons", pa.list_(pa.float64()), "budget of each, in 1/255, where they differ (null: epsilon)"),
    ("round_predictions", pa.list_(pa.string()), "answer after each round; null after one that only prepares"),
    ("round_scores", pa.list_(pa.float64()), "metric of each"),
    ("best_round", pa.string(), "round that gave the worst score; 'clean' where no attack lowered it"),
    ("loss_clean", pa.float64(), "attack loss at the start of the best round (first round if none helped)"),
    ("loss_best", pa.float64(), "largest attack loss of that round"),
    ("loss_last_rise", pa.float64(), "rise of the best loss over that round's last tenth of steps"),
    ("zero_gradient_share", pa.float64(), "share of exactly zero image gradients over all steps, in [0, 1]"),
    ("clean_png", pa.binary(), "the encoder's clean input image, 8 bit (records of epsilon 0 only)"),
    ("shown_png", pa.binary(), "the encoder's input image, where it is neither clean nor attacked (of a few samples)"),
    ("adversarial_png", pa.binary(), "the worst adversarial image rounded to 8 bits (attacked samples only)"),
    ("adversarial_rest", pa.binary(), "scored image minus adversarial_png in 1/128 level: int8, rows, columns, RGB"),
    ("checked", pa.bool_(), "whether the attack checks looked at this sample (null: not)"),
    ("findings", pa.list_(pa.string()), "checks that were raised for it"),
    ("error", pa.string(), "why there is no score (null where there is one)"),
]

RECORD_SCHEMA = pa.schema(
    [pa.field(name, kind, metadata={"description": text}) for name, kind, text in _COLUMNS],
    metadata={"rllava.schema": f"record-v{RECORD_VERSION}"},
)
"""Arrow schema of a records part; the description of each column is in its field's metadata."""

KEY = (
    "candidate", "benchmark", "sample_id", "condition", "epsilon", "severity", "restart", "seed", "draw", "evaluation",
)  # fmt: skip
"""Columns that identify a record: no two records of a storage agree in all of them."""
