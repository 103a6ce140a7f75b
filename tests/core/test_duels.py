"""Duels: the posterior is that of a grid, simulated people of known preference are found, and text is all the state."""

import statistics

import pytest
import torch
from diffusion_blend.blend_core import BlendError
from diffusion_blend.blend_core.duels import (
    Duel,
    Taste,
    _log_likelihood,
    first_better,
    information,
    parse_duels,
    parse_lines,
)

PEOPLE = range(40)  # seeds
CLICKS = 14


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


class Person:
    """Someone of a preference drawn uniformly from the simplex, who clicks as the model says, without slips.

    noise: 0 always clicks the image they like better.
    """

    def __init__(self, count, noise, seed):
        self.generator, self.noise = torch.Generator().manual_seed(1000 + seed), noise
        drawn = -torch.rand(count, generator=self.generator, dtype=torch.float64).log()
        self.preference = drawn / drawn.sum()

    def answer(self, first, second):
        lead = (numbers(*second) - self.preference).square().sum() - (numbers(*first) - self.preference).square().sum()
        chance = torch.sigmoid(lead / self.noise) if self.noise else (lead > 0).double()
        return ">" if torch.rand((), generator=self.generator, dtype=torch.float64) < chance else "<"

    def distance(self, preference):
        return (numbers(*preference) - self.preference).abs().sum().item()


def distances(person, taste, clicks):
    """The L1 distance of the best guess after each click."""
    series = []
    for _ in range(clicks):
        taste = taste.after(person.answer(*taste.pair))
        series.append(person.distance(taste.preference))
    return series


def found_after(distances, limit=0.1):
    """The number of clicks after which every guess lies within the limit."""
    return max((click for click, distance in enumerate(distances, start=1) if distance > limit), default=0) + 1


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "most"), [(0.0, 8), (0.05, 10)], ids=["certain", "noisy"])
def test_a_preference_over_three_rewards_is_found_within_a_tenth_in_ten_clicks(noise, most):
    runs = [distances(Person(3, noise, seed), Taste(3, seed=seed), CLICKS) for seed in PEOPLE]
    assert statistics.median(map(found_after, runs)) <= most
    assert statistics.median(run[9] for run in runs) <= 0.1


def answered(count, seed, clicks=10):
    taste, generator = Taste(count, seed=seed), torch.Generator().manual_seed(seed)
    for _ in range(clicks):
        taste = taste.after(">>><<<="[torch.randint(7, (), generator=generator)])
    return taste


def grid(count, fine=240):
    """Points on the simplex of two or three weights."""
    first, second = torch.meshgrid(torch.arange(fine + 1), torch.arange(fine + 1), indexing="ij")
    if count == 2:
        return torch.stack([first[:, 0], fine - first[:, 0]], 1).double() / fine
    inside = first + second <= fine
    return torch.stack([first[inside], second[inside], fine - first[inside] - second[inside]], 1).double() / fine


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_mean_spread_and_doubt_are_those_of_a_grid(count, seed):
    taste, w = answered(count, seed), grid(count)
    posterior = _log_likelihood(w, taste.duels, taste.noise).softmax(0)
    mean = posterior @ w
    spread = (posterior @ (w - mean).square()).sqrt()
    doubt = posterior @ (w - mean).abs().sum(1)
    # A thousand particles: five standard errors of a mean, and of a deviation.
    torch.testing.assert_close(numbers(*taste.preference), mean, rtol=0, atol=5 * spread.max().item() / 32)
    torch.testing.assert_close(numbers(*taste.spread), spread, rtol=5 / 45, atol=0)
    assert taste.doubt == pytest.approx(doubt.item(), rel=5 / 32)


def test_without_duels_the_taste_is_uniform_on_the_simplex():
    mean, spread = 1 / 4, (3 / (16 * 5)) ** 0.5  # Dirichlet(1, 1, 1, 1)
    assert Taste(4).preference == pytest.approx([mean] * 4, abs=5 * spread / 32)
    assert Taste(4).spread == pytest.approx([spread] * 4, rel=5 / 45)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 6])
def test_particles_stay_on_the_simplex_after_many_duels(count):
    taste = answered(count, 5, clicks=30)
    assert (taste.particles >= 0).all()
    torch.testing.assert_close(taste.particles.sum(1), torch.ones(1024, dtype=torch.float64), rtol=0, atol=1e-12)
    assert sum(taste.preference) == pytest.approx(1, abs=1e-15)


def test_contradictions_under_hardly_any_noise_stay_numbers():
    duel, back = Duel((1.0, 0.0), (0.0, 1.0), ">"), Duel((1.0, 0.0), (0.0, 1.0), "<")
    taste = Taste(2, (duel, back, duel, back), noise=1e-9)
    assert taste.particles.isfinite().all() and 0.2 < taste.preference[0] < 0.8
    assert all(0 <= weight <= 1 for side in taste.pair for weight in side)


def test_a_probability_is_the_formula_and_a_duel_reads_the_same_from_both_sides():
    w, a, b = numbers(0.6, 0.3, 0.1), numbers(0.5, 0.5, 0.0), numbers(0.2, 0.0, 0.8)
    lead = -(a - w).square().sum() + (b - w).square().sum()
    expected = 0.01 + 0.98 / (1 + (-lead / 0.3).exp())
    assert first_better(w[None], a[None], b[None], 0.3).item() == pytest.approx(expected.item(), abs=1e-15)
    one, other = (Duel((0.5, 0.5), (0.2, 0.8), sign) for sign in "><")
    swapped = Duel(one.second, one.first, "<")
    points = grid(2)
    for duel, same in ((one, swapped), (other, Duel(one.second, one.first, ">"))):
        torch.testing.assert_close(_log_likelihood(points, [duel], 0.05), _log_likelihood(points, [same], 0.05))
    tie = _log_likelihood(points, [Duel(one.first, one.second, "=")], 0.05)
    torch.testing.assert_close(tie, sum(_log_likelihood(points, [duel], 0.05) for duel in (one, other)))


def test_information_is_nothing_for_a_foregone_answer_and_one_bit_for_people_split_in_halves():
    certain, split = torch.zeros(4, dtype=torch.float64), numbers(0, 0, 1, 1)
    coin = torch.full((4,), 0.5, dtype=torch.float64)
    values = information(torch.stack([certain, split, coin], 1))
    torch.testing.assert_close(values, numbers(0, 0.6931471805599453, 0))


def test_a_pair_tells_more_than_nearly_all_random_pairs():
    taste = answered(3, 7, clicks=5)
    first, second = (Taste(3, seed=seed).particles[:500] for seed in (91, 92))
    others = information(first_better(taste.particles, first, second, taste.noise))
    asked = information(first_better(taste.particles, *(numbers(*side)[None] for side in taste.pair), taste.noise))
    assert asked.item() > others.quantile(0.99).item()


def test_text_is_all_the_state():
    letters = "A\n\n b \n=\nA\n"
    taste = parse_duels(letters, 3, seed=4)
    assert [duel.answer for duel in taste.duels] == [">", "<", "=", ">"]
    written = "\n".join(map(str, taste.duels))
    again = parse_duels(written, 3, seed=4)
    assert again == taste and again.pair == taste.pair and torch.equal(again.particles, taste.particles)
    assert parse_duels("A\nB", 3, seed=5).pair != parse_duels("A\nB", 3, seed=4).pair


def test_an_undone_click_leaves_no_trace():
    before = parse_duels("A\nB", 3)
    before.after("<").pair  # noqa: B018 - asked for, as the node does
    asked = parse_duels("A\nB\nB", 3).duels[2]
    assert (asked.first, asked.second) == before.pair


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A\nfirst", "line 2 of the answers is 'first', expected A, B or ="),
        ("0.5, 0.5 >", "line 1 of the answers"),
        ("0.5, half > 0.5, 0.5", "weights in line 1 .* are not numbers"),
        ("0.5, 0.3, 0.2 > 0.5, 0.5, 0", "3 weights on a side for 2 reward LoRAs"),
        ("0.5, 0.9 > 0.5, 0.5", "weights from 0 upwards that sum to 1"),
        ("-0.5, 1.5 > 0.5, 0.5", "weights from 0 upwards that sum to 1"),
        ("nan, 1 > 0.5, 0.5", "weights from 0 upwards that sum to 1"),
    ],
)
def test_lines_that_are_no_duel_are_refused(text, message):
    with pytest.raises(BlendError, match=message):
        parse_duels(text, 2)


def test_sizes_and_noise_that_make_no_sense_are_refused():
    for count in (1, 7):
        with pytest.raises(BlendError, match=f"duels over {count} rewards .* expected 2 to 6"):
            Taste(count)
    for noise in (0.0, -1.0, float("nan")):
        with pytest.raises(BlendError, match="expected a number above 0"):
            Taste(2, noise=noise)
    with pytest.raises(BlendError, match="expected one of > < ="):
        Taste(2).after("A")


def test_the_description_says_how_well_the_weights_are_known():
    assert "hardly known yet" in Taste(3).describe(["a", "b", "c"])
    person, taste = Person(2, 0.0, 3), Taste(2)
    for _ in range(12):
        taste = taste.after(person.answer(*taste.pair))
    text = taste.describe(["calm", "vivid"])
    assert text.startswith(f"{taste.preference[0]:.2f} calm + {taste.preference[1]:.2f} vivid (found")
    assert "duels: 12" in text


def test_thirds_typed_in_hundredths_are_a_side():
    (duel,) = parse_lines("0.33 0.33 0.33 = 17%, 17%, 66%")
    assert Taste(3, (duel,)).duels == (duel,)
