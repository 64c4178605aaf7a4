"""Judges: they read finished answers, after all attacks, and say of each whether something is in it.

A metric scores an answer at once, inside the attack; a judge is a step of its own (:mod:`rllava.evaluation.judging`).
Another judge is a file here: a frozen :class:`~rllava.metrics.judges.judge.JudgeSpec`, registered in
:data:`~rllava.metrics.judges.judge.JUDGES`, with what it loads.
"""
