"""Blend Weights with `auto`: what the prompt asks for weighs more, and the node says why."""

import pytest

from .host import submodule

BlendError = submodule("blend_core").BlendError


@pytest.fixture
def weigh(nodes, files):
    """weigh(weights, prompt): (blend, the node's text) of LoRAs labelled text and beauty."""
    slots = {}
    for i, label in enumerate(("text", "beauty")):
        inputs = {"lora_name": files[i], "label": label, "kl_weight": 0.0, "scale": 0.0}
        (slots[f"lora_{i}"],) = nodes["LoadRewardLoRA"].execute(**inputs).result

    def run(weights, prompt=""):
        output = nodes["BlendWeights"].execute(slots, weights, normalise=True, prompt=prompt)
        return output.result[0].schedule.blends[0].preference, output.ui["text"][0]

    return run


def test_quoted_text_raises_the_text_reward(weigh):
    preference, text = weigh("auto", 'a sign that says "open"')
    assert preference == (0.75, 0.25)
    assert "auto: quoted text in the prompt: text x 3" in text
    preference, text = weigh("auto 0.2, 0.8", "a sign")
    assert preference == (0.2, 0.8)
    assert "no rule of the prompt raises one of these rewards" in text


def test_without_auto_the_prompt_changes_nothing(weigh):
    assert weigh("0.5, 0.5", '"open"')[0] == (0.5, 0.5)


def test_auto_needs_a_prompt(weigh, nodes):
    with pytest.raises(BlendError, match="weights say auto, but prompt is empty"):
        weigh("auto", " ")
    assert nodes["BlendWeights"].validate_inputs(weights="auto 1, 2", normalise=True, loras={"lora_0": None})
    with pytest.raises(BlendError, match="weights say auto, but prompt is empty"):
        nodes["BlendWeights"].validate_inputs(weights="auto", normalise=True, prompt="")
    with pytest.raises(BlendError, match="are not numbers"):
        nodes["BlendWeights"].validate_inputs(weights="automatic", normalise=True)
