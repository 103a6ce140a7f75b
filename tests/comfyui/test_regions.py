"""Blend Region inside ComfyUI: masks of ones and zeros change nothing, others equal merged copies everywhere."""

import pytest
import torch

from . import networks
from .graphs import latent
from .reference import _apply, _replaced, assert_differ, assert_equal

WEIGHTS = "0.6, 0.3, 0.1"
SIZE = 8  # latent positions of a side


@pytest.fixture
def region(nodes):
    def paint(blend, mask, elsewhere=None):
        return nodes["BlendRegion"].execute(blend=blend, mask=mask, elsewhere=elsewhere).result[0]

    return paint


@pytest.fixture
def blend(graph, files):
    return graph.blend(files, WEIGHTS)


@pytest.mark.parametrize("execution", ["batched", "sequential"])
def test_a_mask_of_ones_is_no_mask_and_one_of_zeros_is_the_base(graph, base, blend, region, plain, execution):
    inside = graph.blended(base, region(blend, torch.ones(1, 64, 64)), execution)
    assert_equal(inside, graph.blended(base, blend, execution))
    assert_equal(graph.blended(base, region(blend, torch.zeros(1, 64, 64)), execution), plain)


@pytest.mark.parametrize("cfg", [1.0, 7.0])
def test_regions_equal_merged_copies_position_by_position(graph, base, merged, blend, files, region, cfg):
    left, soft = torch.zeros(1, SIZE, SIZE), torch.rand(2, SIZE, SIZE, generator=torch.Generator().manual_seed(4))
    left[..., : SIZE // 2] = 1
    other = type(blend)(graph.blend(files, "0, 0.5, 0.5", alignment=1.4).schedule, blend.bases)
    painted = region(other, soft, region(blend, left))
    maps = torch.stack([1 - left.expand(2, -1, -1), left.expand(2, -1, -1)])
    maps = torch.cat([maps * (1 - soft), soft[None]])
    layers = torch.tensor([(1, 0, 0, 0), (0, 0.6, 0.3, 0.1), (-0.4, 0, 0.7, 0.7)])
    coefficients = torch.einsum("lk,lbhw->kbhw", layers, maps)

    def predict(call):
        groups = len(call["input"]) // 2
        weights = [c.repeat(groups, 1, 1)[:, None].to(call["input"].device) for c in coefficients]
        return sum(c * _apply(network, call) for c, network in zip(weights, merged, strict=True))

    inputs = {"latent_image": latent(2, (4, SIZE, SIZE)), "cfg": cfg}
    expected = graph.plain(_replaced(base, predict), **inputs)
    assert_differ(expected, graph.blended(base, blend, **inputs))
    for execution in ("batched", "sequential"):
        assert_equal(graph.blended(base, painted, execution, **inputs), expected)


def test_kl_interpolate_scales_every_region(nodes, blend, region):
    painted = region(blend, torch.ones(1, 8, 8), blend.aligned(0.5))
    (half,) = nodes["KLInterpolate"].execute(blend=painted, alignment=0.5).result
    for small, large in zip(half.coefficients(3), painted.coefficients(3), strict=True):
        torch.testing.assert_close(small[:, 1:], large[:, 1:] / 2)


def test_what_a_region_cannot_do_is_refused(graph, nodes, base, blend, region):
    painted = region(blend, torch.ones(1, 8, 8))
    with pytest.raises(ValueError, match="a region needs every reward at every step"):
        graph.stochastic(base, painted)
    with pytest.raises(ValueError, match="a region came into the input blend"):
        region(painted, torch.ones(1, 8, 8))
    with pytest.raises(ValueError, match="a schedule, a window or a region came"):
        nodes["BlendSchedule"].execute(blends={"blend_0": painted, "blend_1": blend}, curve="linear")
    with pytest.raises(ValueError, match="expected one mask for all, or one per image"):
        graph.blended(base, region(blend, torch.ones(3, 8, 8)), latent_image=latent(2))
    area = networks.conditioning(21)
    area[0][1]["area"] = (4, 4, 0, 0)
    with pytest.raises(ValueError, match="a part of the image was sampled apart"):
        graph.blended(base, painted, positive=area)
