"""The engine on a card that is not there: tensors of the device `meta`, whose numbers nobody can read, stand in for it.

Tensors of two devices never meet; copies to the card and numbers that are read back are counted, and held.
"""

from functools import partial

import pytest
import torch
from diffusion_blend.blend_core import LoRABank
from diffusion_blend.blend_core.estimators import budget, exact, merged, random, stratified
from diffusion_blend.blend_core.gaussian import fused_step
from diffusion_blend.blend_core.network.execution import evaluate_variants
from diffusion_blend.blend_core.parameterization import State
from diffusion_blend.blend_core.plan import Call
from diffusion_blend.blend_core.regions import painted
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import test_launches as launches

pytestmark = pytest.mark.slow
CARD, STEPS, IMAGES, ROWS = "meta", 6, 2, 4
COEFFICIENTS = [0.0, 0.4, 0.6]
READING = {"_local_scalar_dense", "item", "is_nonzero"}  # within inference mode some come whole
COPYING = {"_to_copy", "to", "copy_"}
BY_INDEX = {"index", "index_put_", "index_put", "_unsafe_index_put", "index_select", "index_copy", "gather"}


class Devices(TorchDispatchMode):
    """Raises where tensors of two devices meet; counts copies to the card, and single numbers that are read back."""

    def __init__(self):
        super().__init__()
        self.copies = self.read = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in READING and args[0].device.type == CARD:
            self.read += 1
            return 1.0
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.dim()]
        before = {tensor.device.type for tensor in tensors}
        result = func(*args, **(kwargs or {}))
        after = {leaf.device.type for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
        if name in COPYING and before | after == {CARD, "cpu"}:
            assert after == {CARD}, "read back from the card"
            self.copies += 1
        elif len(before) > 1:
            assert name in BY_INDEX, f"{name} of tensors on {sorted(before)}"  # which copies the indices
            self.copies += 1
        return result


def counted(call):
    """(result, copies to the card, numbers read back)."""
    with Devices() as devices:
        result = call()
    return result, devices.copies, devices.read


@pytest.fixture(scope="module")
def world():
    """(network, adapters, another network), all on the card."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launches, "BLOCKS", 2)
        with torch.device(CARD):
            network, other = (launches.Network().requires_grad_(False) for _ in range(2))
            return network, launches.adapters_of(network), other


@pytest.fixture(autouse=True)
def unread(monkeypatch):
    """A network's first pass, and no other, reads back once whether its inputs stayed as they were."""
    monkeypatch.setattr("diffusion_blend.blend_core.network.bank.refuse_written_inputs", lambda joint: None)


def stepping(world, plan, group, apart=False, whole=()):
    """step(i): the plan's prediction of a step on the card. whole: variants that are the other network."""
    network, adapters, other = world
    attachment = LoRABank(adapters).attach(network, torch.float32)
    attachment.mix(plan.mixtures)
    inputs = {"x": torch.zeros(ROWS, 4, launches.WIDTH, device=CARD)}
    inputs["prompt"] = torch.zeros(ROWS, 3, launches.PROMPT, device=CARD)

    def call(inputs, variants):
        return (other if int(variants[0, 0]) in whole else network)(**inputs)

    def evaluate(variants):
        return evaluate_variants(call, inputs, ROWS, variants, attachment, group, apart, whole)

    def step(i):
        noise = 1 - i / STEPS
        with torch.inference_mode():
            return plan(evaluate, i, call=Call("guided", State(inputs["x"], 1 - noise, noise)))

    return step


EVALUATIONS = {
    "exact": exact,
    "merged": merged,
    "random": random,
    "stratified": stratified,
    "budget": partial(budget, evaluations=1.5),
}
COPIES = {"exact": 1, "random": 3, "budget": 7}  # weights; where choices are new, whose rows they are
READ = {"budget": 1}  # whether predictions drift enough for the next full step, while evaluations are left to spend


def assert_on_the_card(step, copies, read):
    """No step from the third on makes more copies to the card, or reads back more numbers, for all layers together."""
    counted(lambda: [step(0), step(1)])
    for i in range(2, STEPS):
        prediction, *counts = counted(lambda i=i: step(i))
        assert prediction.device.type == CARD and len(prediction) == ROWS
        assert counts[0] <= copies and counts[1] <= read, f"step {i}: {counts}"


@pytest.mark.parametrize("group", [1, 2], ids=["one after another", "one batch"])
@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_evaluation(world, name, group):
    plan = EVALUATIONS[name](COEFFICIENTS, STEPS, range(IMAGES))
    assert_on_the_card(stepping(world, plan, group), COPIES.get(name, 0), READ.get(name, 0))


@pytest.mark.parametrize("apart", [False, True], ids=["rows together", "one variant per pass"])
def test_choices_of_single_images_in_passes_of_their_own(world, apart):
    plan = stratified([0.2, 0.3, 0.5], STEPS, range(IMAGES))
    assert_on_the_card(stepping(world, plan, 1, apart), copies=6, read=0)


def test_whole_models(world):
    plan = exact([0.2, 0.3, 0.5], STEPS, range(IMAGES))
    assert_on_the_card(stepping(world, plan, 3, whole=(2,)), copies=3, read=0)


def test_regions(world):
    """The masks are one copy per step."""
    layers = [torch.tensor([row] * STEPS) for row in ([0.0, 1.0, 0.0], [0.0, 0.0, 1.0])]
    plan = painted(layers, [torch.tensor([[0.0, 1.0]])], (4, launches.WIDTH), IMAGES)
    assert_on_the_card(stepping(world, plan, 2), copies=1, read=0)


def test_a_fused_step():
    predictions = [torch.zeros(2, 4, 4, 4, device=CARD) for _ in range(2)]
    (mean, spread), copies, read = counted(
        lambda: fused_step(predictions[0], predictions, 0.9, 0.5, [1.0, 0.5], [0.4, 0.6], "ve")
    )
    assert mean.device.type == CARD and isinstance(spread, float) and (copies, read) == (0, 0)
