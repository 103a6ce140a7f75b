"""Blend Weights with the LORA_STACK of other packs: (file name, model strength, clip strength) each."""

import pytest

from . import host


@pytest.fixture
def weigh(nodes):
    """weigh(stack, slots): Blend Weights' blend."""

    def run(stack, slots=(), weights=""):
        loras = {f"lora_{i}": lora for i, lora in enumerate(slots)}
        return nodes["BlendWeights"].execute(loras, weights, normalise=True, lora_stack=stack).result[0]

    return run


@pytest.fixture
def alone(nodes):
    """alone(file): what Load Reward LoRA makes of it."""
    return lambda file: nodes["LoadRewardLoRA"].execute(file, label="", kl_weight=0.0, scale=0.0).result[0]


def test_a_stack_comes_after_the_slots_as_load_reward_lora_reads_its_files(weigh, alone, files):
    slot, *loaded = map(alone, files)
    blend = weigh([(files[1], 1.0, 0.3), [files[2], 1, 0]], [slot, None], "0.5, 0.3, 0.2")
    assert blend.bases[0] is slot and len(blend.bases) == 3
    for lora, expected in zip(blend.bases[1:], loaded, strict=True):
        assert (lora.label, lora.kl_weight, lora.adapter.path) == (
            expected.label,
            expected.kl_weight,
            expected.adapter.path,
        )
    assert blend.names == tuple(lora.label for lora in (slot, *loaded))
    assert blend.schedule.blends[0].preference == (0.5, 0.3, 0.2)


def test_two_blends_of_one_stack_are_blends_of_the_same_bases(weigh, files):
    stack = [(file, 1.0, 1.0) for file in files[:2]]
    first, second = weigh(stack, weights="1, 0"), weigh(stack, weights="0, 1")
    wide = host.submodule("nodes.sockets").joined(first, second)
    assert [blend.schedule.blends[0].preference for blend in wide] == [(1.0, 0.0), (0.0, 1.0)]


def test_a_lora_that_stands_twice_in_a_blend_keeps_both_its_weights_beside_another_blend(weigh, files):
    twice = weigh([(files[0], 1.0, 1.0)] * 2 + [(files[1], 1.0, 1.0)], weights="0.1, 0.2, 0.7")
    wide, _ = host.submodule("nodes.sockets").joined(twice, weigh([(files[2], 1.0, 1.0)]))
    assert wide.schedule.blends[0].preference == pytest.approx((0.3, 0.7, 0.0))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (("gone.safetensors", 1.0, 1.0), "gone.safetensors is not in models/loras"),
        (("calm.safetensors", 0.8, 1.0), "calm.safetensors came in lora_stack with model strength 0.8, expected 1"),
        (("calm.safetensors", 1.0), "expected .file name, model strength, clip strength."),
        ((None, 1.0, 1.0), "expected .file name, model strength, clip strength."),
    ],
)
def test_a_stack_that_cannot_be_blended_is_refused(weigh, entry, message):
    with pytest.raises(host.submodule("blend_core").BlendError, match=message):
        weigh([entry])


def test_without_slots_and_stack_one_is_asked_to_connect(weigh):
    for stack in (None, []):
        with pytest.raises(host.submodule("blend_core").BlendError, match="Connect"):
            weigh(stack)
