"""Weights by the prompt: what raises which reward, and what leaves all as they were."""

import pytest
from diffusion_blend.blend_core.adapters.routing import routed, rules, without_auto

LABELS = ["SD3.5M-FlowGRPO-Text", "geneval", "pickscore"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a fox in the snow", [1, 1, 1]),
        ('a sign that says "open"', [3, 1, 1]),
        ("ein Schild mit „offen“", [3, 1, 1]),
        ("three foxes left of a tree", [1, 3, 1]),
        ('two signs that say "open"', [3, 3, 1]),
        ("it's the fox's den", [1, 1, 1]),
        ("an empty quote “” on a wall", [1, 1, 1]),
        ("a twofold path, 20 of 100 steps", [1, 1, 1]),
    ],
)
def test_a_prompt_raises_the_reward_it_asks_for(prompt, expected):
    numbers, reason = routed(prompt, LABELS, [1, 1, 1])
    assert numbers == expected
    assert reason.startswith("auto: ") and all((LABELS[i] in reason) == (expected[i] > 1) for i in range(3))


def test_given_weights_are_multiplied_and_a_zero_stays():
    assert routed('"a"', ["ocr", "beauty"], [0.5, 0.5])[0] == [1.5, 0.5]
    assert routed('"a"', ["ocr", "beauty"], [0.0, 1.0])[0] == [0.0, 1.0]


def test_a_label_that_only_contains_the_word_is_another_reward():
    assert routed('"a"', ["texture", "context"], [1, 1])[0] == [1, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.6, 0.4", (False, "0.6, 0.4")), ("auto", (True, "")), (" Auto: 1, 2", (True, "1, 2")), ("", (False, "")),
     ("automatic", (False, "automatic"))],
)  # fmt: skip
def test_auto_stands_before_the_weights(text, expected):
    assert without_auto(text) == expected


def test_every_rule_names_labels_and_raises():
    assert rules() and all(rule.labels and rule.times > 1 for rule in rules())
