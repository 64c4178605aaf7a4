"""Scores of generated text, per sample, in the units of the paper's tables. Every file of this folder is imported, so
that a new metric is one file, which registers itself in :data:`rllava.metrics.metric.METRICS`."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
