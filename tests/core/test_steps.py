"""Which step an evaluation belongs to, under the calls that ComfyUI's samplers make (traced in 0.28).

nodes/host/steps.py imports no host, but its package does: the file is loaded by its path.
"""

import importlib.util
from itertools import pairwise
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[2] / "nodes" / "host" / "steps.py"
STEPS = 8
SIGMAS = torch.tensor([14.615, 6.678, 3.523, 2.061, 1.277, 0.791, 0.441, 0.0292, 0.0])
FLOW = torch.linspace(1, 0, STEPS + 1)


def load():
    spec = importlib.util.spec_from_file_location("blend_clock", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CLOCK = load()


def steps_of(evaluated, sampler, sigmas=SIGMAS):
    """The step of each evaluation of one run."""
    clock = CLOCK.StepClock(sigmas, sampler)
    return [clock.step(float(sigma)) for sigma in evaluated]


def pairs_of(steps=STEPS):
    """0 0 1 1 ... and the last step once: a sampler of two calls per step, which ends with an Euler step."""
    return [step for step in range(steps) for _ in range(2)][:-1]


def test_its_file_imports_no_host():
    assert {"torch", "__future__"} >= {
        line.split()[1].split(".")[0] for line in FILE.read_text().splitlines() if line.startswith(("import ", "from "))
    }


@pytest.mark.parametrize("sigmas", [SIGMAS, FLOW], ids=["ve", "flow"])
@pytest.mark.parametrize("sampler", ["sample_euler", "sample_dpmpp_2m", "sample_ddpm", "sample_lcm", "", "of_a_pack"])
def test_a_sampler_that_calls_once_per_step_counts_up(sampler, sigmas):
    assert steps_of(sigmas[:-1], sampler, sigmas) == list(range(STEPS))


def test_sigmas_may_be_off_by_rounding():
    for wobble in (1 - 1e-5, 1 + 1e-5):
        assert steps_of(SIGMAS[:-1] * wobble, "sample_euler") == list(range(STEPS))


def test_repeated_calls_at_one_sigma_belong_to_one_step():
    # samplers of two calls at one sigma, or guidance in calls of its own
    assert steps_of(SIGMAS[:-1].repeat_interleave(3), "sample_euler") == [s for s in range(STEPS) for _ in range(3)]


@pytest.mark.parametrize("sampler", ["sample_dpm_2", "sample_dpmpp_sde", "sample_seeds_2"])
def test_a_call_between_two_sigmas_belongs_to_the_step_it_is_in(sampler):
    middles = (SIGMAS[:-2] * SIGMAS[1:-1]).sqrt()
    evaluated = [*torch.stack([SIGMAS[:-2], middles], 1).flatten(), SIGMAS[-2]]
    assert steps_of(evaluated, sampler) == pairs_of()


def test_two_calls_between_two_sigmas_belong_to_the_step_they_are_in():
    first, second = (SIGMAS[:-2] ** (1 - r) * SIGMAS[1:-1] ** r for r in (1 / 3, 2 / 3))
    evaluated = [*torch.stack([SIGMAS[:-2], first, second], 1).flatten(), SIGMAS[-2]]
    assert steps_of(evaluated, "sample_seeds_3") == [s for s in range(STEPS - 1) for _ in range(3)] + [STEPS - 1]


@pytest.mark.parametrize("sigmas", [SIGMAS, FLOW], ids=["ve", "flow"])
@pytest.mark.parametrize(
    "sampler",
    [
        "sample_heun",
        "sample_exp_heun_2_x0",
        "sample_exp_heun_2_x0_sde",
        "sample_sa_solver_pece",
        # At eta 1, their default, sigma_down is s_next^2 / s: the midpoint of s and that is s_next itself.
        "sample_dpm_2_ancestral",
        "sample_dpmpp_2s_ancestral",
        "sample_dpmpp_2s_ancestral_cfg_pp",
    ],
)
def test_a_corrector_on_the_next_sigma_belongs_to_the_step_it_corrects(sampler, sigmas):
    evaluated = [sigmas[0], *sigmas[1:-1].repeat_interleave(2)]
    assert steps_of(evaluated, sampler, sigmas) == pairs_of()


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.2])
def test_an_ancestral_midpoint_at_any_eta_belongs_to_its_step(eta):
    evaluated = []
    for now, after in pairwise(SIGMAS[:-1]):
        up = min(after, eta * (after**2 * (now**2 - after**2) / now**2) ** 0.5)
        down = (after**2 - up**2).clamp(min=1e-6) ** 0.5
        evaluated += [now, (now * down) ** 0.5]
    assert steps_of([*evaluated, SIGMAS[-2]], "sample_dpm_2_ancestral") == pairs_of()


def test_heunpp2_looks_two_sigmas_ahead_within_a_step():
    ahead = [[i for i in range(step, step + 3) if i < STEPS] for step in range(STEPS)]
    evaluated = [SIGMAS[i] for places in ahead for i in places]
    assert steps_of(evaluated, "sample_heunpp2") == [step for step, places in enumerate(ahead) for _ in places]


def test_a_corrector_at_the_end_of_a_partial_schedule_belongs_to_the_last_step():
    part = SIGMAS[:4]  # three steps that leave noise: Heun corrects the last one too
    assert steps_of([part[0], *part[1:3].repeat_interleave(2), part[3]], "sample_heun", part) == [0, 0, 1, 1, 2, 2]
    assert steps_of([part[0], part[1], part[2], part[3]], "sample_euler", part) == [0, 1, 2, 2]


def test_sigmas_off_the_grid_stay_within_the_steps():
    assert steps_of([20.0, 10.0, 5.0, 0.5, 0.01, 0.0], "dpm_adaptive_function") == [0, 0, 1, 5, 7, 7]


def test_a_schedule_that_starts_late_begins_at_its_first_step():
    late = SIGMAS[3:]  # denoise below 1
    assert steps_of(late[:-1], "sample_euler", late) == list(range(5))


@pytest.mark.parametrize("sampler", ["sample_euler", "sample_heun"])
def test_a_schedule_of_one_sigma_or_none_has_one_step(sampler):
    assert steps_of([1.0, 1.0], sampler, torch.tensor([1.0])) == [0, 0]
    assert steps_of([1.0], sampler, torch.tensor([1.0, 0.0])) == [0]
    assert steps_of([1.0], sampler, torch.tensor([])) == [0]
