"""Grids of preferences, Pareto fronts, hypervolumes, and their picture."""

from math import comb

import pytest
from diffusion_blend.blend_core.pareto import Scored, Trade, hypervolume, pareto_front, simplex_grid
from diffusion_blend.blend_core.pictures.paper import even_ticks
from diffusion_blend.blend_core.pictures.pareto import BEHIND, ON_FRONT, SHADE, draw
from PIL import Image, ImageColor


@pytest.mark.parametrize(("rewards", "parts"), [(1, 3), (2, 4), (3, 4), (4, 3)])
def test_a_grid_is_every_preference_of_its_spacing_once(rewards, parts):
    grid = simplex_grid(rewards, parts)
    assert len(grid) == len(set(grid)) == comb(parts + rewards - 1, rewards - 1)
    assert all(sum(preference) == pytest.approx(1) and min(preference) >= 0 for preference in grid)
    assert grid[0] == (1.0,) + (0.0,) * (rewards - 1)
    assert all((weight * parts).is_integer() for preference in grid for weight in preference)


def test_the_front_leaves_out_what_another_point_dominates():
    points = [(1, 3), (2, 2), (1, 2), (3, 1), (3, 1), (0, 3)]
    assert pareto_front(points) == [0, 1, 3, 4]
    assert pareto_front([(1, 1, 1), (1, 1, 2), (2, 0, 0)]) == [1, 2]


@pytest.mark.parametrize(
    ("points", "reference", "volume"),
    [
        ([(1, 3), (2, 2), (3, 1), (1, 1)], (0, 0), 6),
        ([(2, 2), (-1, 5)], (0, 0), 4),
        ([(1, 1, 2), (2, 1, 1), (1, 2, 1)], (0, 0, 0), 4),
        ([], (0, 0), 0),
    ],
)
def test_hypervolume_of_staircases(points, reference, volume):
    assert hypervolume(points, reference) == pytest.approx(volume)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2, 0.4), (18.2, 18.9), (0.0, 2e-5)])
def test_ticks_are_round_few_and_inside(low, high):
    ticks = even_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)


def trade(names, rows, pictures=False):
    shown = [Image.new("RGB", (200, 100), (250, 0, 250)) if pictures else None for _ in rows]
    points = [
        Scored(f"w = {i}", row, (0.1,) * len(row), picture)
        for i, (row, picture) in enumerate(zip(rows, shown, strict=True))
    ]
    return Trade(names, tuple(points), (0.0,) * len(names))


def colours(image):
    return {colour for _, colour in image.getcolors(1 << 24)}


def test_the_picture_shows_the_front_its_shade_and_the_thumbnails():
    shown = draw(trade(("calm", "vivid"), [(1, 3), (2, 2), (1, 1)], pictures=True))
    palette = colours(shown)
    assert {ImageColor.getrgb(colour) for colour in (ON_FRONT, SHADE)} | {(250, 0, 250)} <= palette
    chart = draw(trade(("calm", "vivid"), [(1, 3), (2, 2), (1, 1)]))
    assert chart.height < shown.height and (250, 0, 250) not in colours(chart)


@pytest.mark.slow
def test_three_rewards_have_three_panels_and_no_shade():
    shown = draw(trade(("a", "b", "c"), [(1, 3, 0.5), (2, 2, 2), (1, 1, 1)]))
    assert shown.width > 2.5 * draw(trade(("a", "b"), [(1, 3), (2, 2)])).width
    assert ImageColor.getrgb(SHADE) not in colours(shown)
    assert ImageColor.getrgb(BEHIND) in colours(shown)


def test_points_that_are_all_alike_can_be_drawn():
    same = draw(Trade(("a", "b"), (Scored("x", (1.0, 1.0), (0.0, 0.0)),) * 2, (1.0, 1.0)))
    assert ImageColor.getrgb(ON_FRONT) in colours(same)
