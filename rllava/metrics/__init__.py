"""Scores of generated text: CIDEr and VQA accuracy, per sample, in the units of the paper's tables."""
