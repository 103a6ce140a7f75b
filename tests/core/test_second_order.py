"""Merged minus exact is of second order in the deltas; the curvature foretells it (docs/merged_or_exact.md)."""

from itertools import combinations, pairwise

import pytest
import torch
from diffusion_blend.blend_core import Blend, LoRABank
from diffusion_blend.blend_core.estimators import exact
from diffusion_blend.blend_core.estimators import merged as one_prediction
from diffusion_blend.blend_core.network.execution import evaluate_variants
from torch.func import functional_call, jvp

from .test_bank import adapters, inputs, merged, network

NAMES = ("a", "b", "c")
BLENDS = {
    "two, as trained": Blend(NAMES, (0.5, 0.5, 0)),
    "three": Blend(NAMES, (0.5, 0.3, 0.2)),
    "one beyond": Blend(NAMES, (1, 0, 0), alignment=1.6),
    "halfway to the base": Blend(NAMES, (0.5, 0.3, 0.2), alignment=0.5),
    "away from one": Blend(NAMES, (0.6, -0.4, 0)),
}


def scaled(bases, size):
    """The same adapters with their weight changes times `size`."""
    return [{target: change.times(size) for target, change in basis.items()} for basis in bases]


def measured(net, bases, coefficients, x):
    """merged - exact, and exact - base: (rows, ...) each."""
    attachment = LoRABank(bases).attach(net)

    def evaluate(variants):
        return evaluate_variants(lambda rows, _variants: net(rows), x, len(x), variants, attachment, 1)

    together, apart = (estimator(coefficients, 1, range(len(x))) for estimator in (one_prediction, exact))
    attachment.mix(together.mixtures)
    blend = apart(evaluate, 0)
    return together(evaluate, 0) - blend, blend - net(x)


def foretold(net, bases, coefficients, x):
    """- 1/2 sum_{i<j} c_i c_j f''[D_i - D_j], the base among the variants with D_0 = 0."""
    weights = dict(net.named_parameters())
    deltas = [{name: torch.zeros_like(weight) for name, weight in weights.items()}]
    for basis in bases:
        changed = dict(merged(net, basis).named_parameters())
        deltas.append({name: changed[name] - weight for name, weight in weights.items()})

    def curvature(direction):
        def slope(at):
            return jvp(lambda w: functional_call(net, w, (x,)), (at,), (direction,))[1]

        return jvp(slope, (weights,), (direction,))[1]

    pairs = combinations(range(len(deltas)), 2)
    terms = [
        coefficients[i] * coefficients[j] * curvature({n: deltas[i][n] - deltas[j][n] for n in weights})
        for i, j in pairs
        if coefficients[i] * coefficients[j] != 0
    ]
    return -sum(terms) / 2


def relative(result, expected):
    return ((result - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("blend", BLENDS.values(), ids=BLENDS)
def test_the_curvature_foretells_the_gap_up_to_third_order(blend):
    """What is left out falls with the size of the deltas, by half where they are halved."""
    net, x = network(), inputs(3)
    errors = []
    for size in (0.04, 0.02, 0.01):
        bases = scaled(adapters(), size)
        gap, _ = measured(net, bases, blend.coefficients, x)
        errors.append(relative(gap, foretold(net, bases, blend.coefficients, x)))
    assert errors[-1] < 0.02
    assert [later / earlier for earlier, later in pairwise(errors)] == pytest.approx([0.5] * 2, abs=0.1)


def test_the_gap_relative_to_the_way_from_the_base_grows_in_proportion_to_the_deltas():
    net, x, blend = network(), inputs(3), BLENDS["three"]
    shares = []
    for size in (0.01, 0.02):
        gap, way = measured(net, scaled(adapters(), size), blend.coefficients, x)
        shares.append((gap.norm() / way.norm()).item())
    assert shares[1] / shares[0] == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("alignment", [0.0, 1.0])
def test_of_one_basis_as_trained_and_of_the_base_there_is_no_gap(alignment):
    net, x = network(), inputs(3)
    gap, _ = measured(net, adapters(), Blend(NAMES, (0, 1, 0), alignment).coefficients, x)
    assert not gap.any()
