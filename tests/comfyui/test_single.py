"""A single reward LoRA goes wherever a blend does: it is the blend of itself alone."""

import pytest
import torch


@pytest.fixture
def lora(nodes, files):
    """What Load Reward LoRA gives."""
    return nodes["LoadRewardLoRA"].execute(lora_name=files[0], label="", kl_weight=0.0, scale=0.0).result[0]


@pytest.fixture
def blend(graph, lora):
    """The same through Blend Weights."""
    return graph.blend([lora])


def test_every_sampler_takes_it(graph, base, lora, blend):
    for sample in (graph.blended, graph.msdda):
        etas = {"etas": "1"} if sample == graph.msdda else {}
        assert torch.equal(sample(base, lora, **etas), sample(base, blend, **etas))
    for evaluation in ("exact", "stratified"):
        single, whole = (graph.applied(base, one, evaluation=evaluation) for one in (lora, blend))
        assert torch.equal(graph.plain(single), graph.plain(whole))


def test_every_node_that_changes_a_blend_takes_it(nodes, lora, blend):
    mask = torch.ones(1, 8, 8)

    def run(node, **inputs):
        return nodes[node].execute(**inputs).result[0]

    for one, other in ((lora, blend), (lora, lora)):
        region = run("BlendRegion", blend=one, mask=mask, elsewhere=other)
        assert region.describe() == run("BlendRegion", blend=blend, mask=mask, elsewhere=blend).describe()
        schedule = run("BlendSchedule", blends={"blend_0": one, "blend_1": other}, curve="linear")
        both = {"blend_0": blend, "blend_1": blend}
        assert schedule.describe() == run("BlendSchedule", blends=both, curve="linear").describe()
    (swept,) = run("Sweep", blend=lora, over={"over": "preference", "parts": 1})
    assert swept.describe() == blend.describe()
    assert run("KLInterpolate", blend=lora, alignment=0.5).describe() == blend.aligned(0.5).describe()
