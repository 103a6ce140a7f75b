"""The demo on the shipped studio, at its smallest."""

import json

import pytest
import torch
from diffusion_blend.lab.toy.demo.pictures import draw_grid, draw_pareto
from diffusion_blend.lab.toy.demo.points import REWARDS, SWEPT, Setting
from diffusion_blend.lab.toy.demo.run import (
    ALIGNMENTS,
    PROMPTS,
    WEIGHTS,
    measure_one,
    print_findings,
    print_table,
    settings,
)

ROW = {"method", "weights", "alignment", "rewards", "evaluations_per_step", "seconds_per_image", "n"}


@pytest.fixture(scope="module")
def points():
    return {setting: measure_one(setting, 1) for setting in chosen()}


def chosen():
    return [
        Setting("base", (0.5, 0.5), 0.0),
        Setting("single", (1.0, 0.0)),
        Setting("mpa", (1.0, 0.0)),
        Setting("kla", (0.5, 0.5), 0.0),
        Setting("kla", (0.5, 0.5), 2.0),
    ]


def test_the_settings_sweep_every_method_and_the_kl_dial():
    everything = list(settings())
    assert len(everything) == 3 + len(SWEPT) * len(WEIGHTS) + len(ALIGNMENTS)
    assert set(chosen()) <= set(everything)
    assert {setting.method for setting in everything} == {"base", "single", "kla", *SWEPT}


def test_all_weight_on_one_reward_gives_that_lora_alone_bit_for_bit(points):
    _, single, mpa, *_ = points.values()
    assert torch.equal(single.images, mpa.images)


def test_alignment_0_gives_the_base_model_bit_for_bit(points):
    base, _, _, kla, _ = points.values()
    assert torch.equal(base.images, kla.images)
    assert base.rewards == kla.rewards


def test_a_point_reports_what_the_report_promises(points):
    for setting, point in points.items():
        row = json.loads(json.dumps(point.row()))
        assert row.keys() >= ROW
        assert row["n"] == len(PROMPTS)
        assert row["rewards"].keys() >= set(REWARDS)
        assert row["evaluations_per_step"] == (3 if setting.alignment == 2 else 1)


@pytest.fixture(scope="module")
def everything(points):
    """A point for every setting, all with the images and scores of one."""
    some = next(iter(points.values()))
    return [type(some)(setting, some.images, some.scores, 1.0, 0.1, 0.1) for setting in settings()]


def test_the_report_and_its_findings_are_printed(everything, capsys):
    print_table(everything)
    print_findings(everything)
    printed = capsys.readouterr().out
    assert all(printed.count(f" {method} ") >= len(WEIGHTS) for method in SWEPT)
    assert "paired difference +0.000 ± 0.000" in printed and "(not nearer)" in printed


def test_the_pictures_are_drawn(everything, tmp_path):
    draw_grid(everything, PROMPTS, tmp_path / "grid.png")
    draw_pareto(everything, tmp_path / "pareto.png")
    assert (tmp_path / "grid.png").stat().st_size > 10_000
    assert (tmp_path / "pareto.png").stat().st_size > 10_000
