"""Blend Duel: a simulated person who answers what the node asks is found, and its blends are those of Blend Weights."""

import pytest
import torch

from .reference import assert_differ


@pytest.fixture(scope="module")
def duel(nodes, files):
    """duel(answers, count, ...): the node's blends a, b and best, its text, and what the editor's script is told."""

    def run(answers, count=3, **options):
        load = nodes["LoadRewardLoRA"].execute
        slots = {
            f"lora_{i}": load(lora_name=file, label=f"r{i}", kl_weight=0.0, scale=0.0).result[0]
            for i, file in enumerate(files[:count])
        }
        made = nodes["BlendDuel"].execute(loras=slots, answers=answers, **options)
        return *made.result, made.ui

    return run


def preference(blend):
    return torch.tensor(blend.schedule.blends[0].preference, dtype=torch.float64)


@pytest.mark.parametrize("wanted", [(0.6, 0.3, 0.1), (0.05, 0.15, 0.8)])
def test_a_person_who_answers_is_found(duel, wanted):
    wanted, answers = torch.tensor(wanted, dtype=torch.float64), ""
    for _ in range(10):
        first, second, *_ = duel(answers)
        nearer = (preference(first) - wanted).norm() < (preference(second) - wanted).norm()
        answers += "A\n" if nearer else "B\n"
    *_, best, text, _ = duel(answers)
    assert (preference(best) - wanted).abs().sum() <= 0.1
    assert "duels: 10" in text and " r0 + " in text


def test_the_pair_that_the_editor_is_told_answers_as_letters_do(duel):
    *_, message = duel("")
    (pair,) = (entry["pair"] for entry in message["diffusion_blend"])
    (shown,) = message["text"]
    lines = f"{pair[0]} < {pair[1]}"
    first, second, best, text, _ = duel(lines)
    again = duel("B")
    assert [first.schedule, second.schedule, best.schedule, text] == [*(item.schedule for item in again[:3]), again[3]]
    assert shown.endswith(f"A: {pair[0]}\nB: {pair[1]}")


def test_the_two_blends_and_the_best_are_sampled_as_those_of_blend_weights(graph, base, files, duel):
    first, second, best, *_ = duel("A\nB", count=2)
    assert_differ(graph.blended(base, first), graph.blended(base, second))
    for blend in (first, best):
        weights = ", ".join(map(repr, preference(blend).tolist()))
        assert torch.equal(graph.blended(base, blend), graph.blended(base, graph.blend(files[:2], weights)))


def test_wrong_lines_are_refused_before_anything_runs_and_other_counts_where_it_runs(nodes, duel):
    check = nodes["BlendDuel"].validate_inputs
    assert "line 2 of the answers is 'maybe'" in check(answers="A\nmaybe")
    assert check(answers="a\n\n0.7, 0.3 > 0.2, 0.8") is True
    assert check() is True  # a link brings the text
    with pytest.raises(ValueError, match="2 weights on a side for 3 reward LoRAs"):
        duel("0.7, 0.3 > 0.2, 0.8")
    with pytest.raises(ValueError, match="expected 2 to 6"):
        duel("", count=1)
