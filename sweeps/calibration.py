"""placeholder"""

from sweeps.known_rates import Known
from sweeps.plan import Plan


def calibrate(plan: Plan, known: Known, threads: int) -> None:
    """later"""
