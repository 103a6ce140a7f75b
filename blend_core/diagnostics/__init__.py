"""When to trust a blend: how far its bases disagree, and how large the Jensen gap is that it neglects.

    disagreement    Delta_i = D_i - D_0, the pull of basis i away from the base, relative to |x - D_0|
    Jensen gap      G(x_t) = log E[exp(r / alpha) | x_t] - E[r / alpha | x_t],  x0 ~ p_base(. | x_t)

A blend takes the control grad_x log E[exp(r / alpha) | x_t] to be linear in r / alpha (arXiv 2505.18547, Lemma 1):
that is so where the gap is small, or the same at every x_t, as for a linear reward on Gaussian data. Both noise
families move along (x - D) / sigma, so |Delta_i| / |x - D_0| is the share by which basis i bends the base's direction:
0 no change, 1 a change as large as the direction itself. It compares bases, steps and models of any size.
"""

from .measures import (
    MOST_VARIATION,
    Disagreement,
    Gap,
    disagreement,
    gap_at,
    jensen_gap,
    posterior_samples,
    probed_steps,
)
from .verdict import MOST_BEND, OPPOSED, Diagnosis, Verdict, sole_variant
from .ways import FEWEST_PAIRS, SAME, Estimate, ScoredWays, check_pairs, way_to_take

__all__ = [
    "FEWEST_PAIRS",
    "MOST_BEND",
    "MOST_VARIATION",
    "OPPOSED",
    "SAME",
    "Diagnosis",
    "Disagreement",
    "Estimate",
    "Gap",
    "ScoredWays",
    "Verdict",
    "check_pairs",
    "disagreement",
    "gap_at",
    "jensen_gap",
    "posterior_samples",
    "probed_steps",
    "sole_variant",
    "way_to_take",
]
