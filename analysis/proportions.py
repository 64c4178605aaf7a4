"""Intervals of shares."""

import math

from scipy.special import ndtri


def wilson(found: int, n: int, level: float) -> tuple[float, float]:
    """Wilson's score interval of a share (Journal of the American Statistical Association 22(158), 1927).

    Args:
        found: how many of ``n`` independent trials.
        level: that it covers, e.g. 0.95.

    Returns:
        Its bounds; NaN of no trials.
    """
    if n == 0:
        return math.nan, math.nan
    z = float(ndtri((1 + level) / 2))
    share, spread = found / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    # At the ends rounding would leave 1e-17 of what is 0 or 1.
    return 0.0 if found == 0 else centre - half, 1.0 if found == n else centre + half
