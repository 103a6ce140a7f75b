"""Two networks of one model in two samplers, as Wan 2.2 has them: one for the steps of high noise, one for the rest."""

from dataclasses import replace

import pytest
import torch

from nodes import KSamplerAdvanced  # ComfyUI's own

from . import host, loras, networks
from .graphs import latent, noisy_latent
from .reference import assert_differ, assert_equal, blended_reference, switching_reference

STEPS, SPLIT = 10, 4
WEIGHTS, COEFFICIENTS = "0.5, 0.3", (0.2, 0.5, 0.3)
core, estimators = host.submodule("blend_core"), host.submodule("blend_core.estimators")
Job = host.submodule("blend_core.plan").Job
JOBS, RUNS = (Job(STEPS), Job(STEPS, SPLIT)), (Job(), Job())
ESTIMATORS = estimators.EVALUATIONS


@pytest.fixture(scope="module")
def low(reward_loras):
    """The network of low noise: another model of the same shape, and two copies with a LoRA merged into each."""

    def loaded():
        patcher = networks.sd15()
        reward_loras[2][0].merge_into(patcher.model)
        return patcher

    return loaded(), [loaded().model, *(lora.merge_into(loaded().model) for lora, _ in reward_loras[:2])]


@pytest.fixture
def blend(graph, files):
    """Two LoRAs and a fifth of the base."""
    return graph.blend(files[:2], WEIGHTS, normalise=False)


@pytest.fixture
def in_two(graph):
    """in_two(first, second): two KSampler (Advanced) that share the steps of one picture."""

    def run(first, second, latent_image=None, cfg=3.0, sampler_name="euler", split=SPLIT, prompts=graph):
        shared = {"noise_seed": 1, "steps": STEPS, "cfg": cfg, "sampler_name": sampler_name, "scheduler": "normal"}
        shared |= {"positive": prompts.positive, "negative": prompts.negative}
        node, start = KSamplerAdvanced(), {"start_at_step": 0, "end_at_step": split, "add_noise": "enable"}
        (half,) = node.sample(
            first, **shared, **start, latent_image=latent_image or latent(2), return_with_leftover_noise="enable"
        )
        end = {"start_at_step": split, "end_at_step": 10000, "add_noise": "disable"}
        (whole,) = node.sample(second, **shared, **end, latent_image=half, return_with_leftover_noise="disable")
        return whole["samples"]

    return run


def halves(models, blend, evaluation, jobs=JOBS):
    """Apply Blend on each of two models, at one seed."""
    apply_blend, estimator = host.submodule("nodes.host.apply").apply_blend, ESTIMATORS[evaluation]
    return [apply_blend(model, blend, estimator, "auto", 7, job=job) for model, job in zip(models, jobs, strict=True)]


def choices(applied) -> torch.Tensor:
    """(images, steps) of the last run, for one variant per step."""
    return applied.wrappers.last.plan.variants[:, 0].T


@pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_2m", "heun"])
def test_exact_blends_of_two_experts_equal_merged_copies(graph, base, merged, low, blend, in_two, sampler_name):
    low_model, low_networks = low
    expected = in_two(
        blended_reference(base, merged[:3], COEFFICIENTS),
        blended_reference(low_model, low_networks, COEFFICIENTS),
        sampler_name=sampler_name,
    )
    result = in_two(*(graph.applied(model, blend) for model in (base, low_model)), sampler_name=sampler_name)
    assert_equal(result, expected)
    assert_differ(in_two(graph.applied(base, blend), low_model, sampler_name=sampler_name), expected)


def test_exact_blends_in_two_samplers_of_wan_equal_merged_copies(cases, in_two):
    case = cases("Wan 2.1")
    options = {"latent_image": case.inputs["latent_image"], "prompts": case.graph}
    expected = in_two(
        blended_reference(case.model, case.networks, (0.0, 0.6, 0.4)),
        blended_reference(case.model, case.networks, (-0.2, 0.72, 0.48)),
        **options,
    )
    blends = (case.blend(1.0), case.blend(1.2))
    assert_equal(in_two(*(case.graph.applied(case.model, blend) for blend in blends), **options), expected)


@pytest.mark.parametrize("shared", [True, False], ids=["one job", "two runs"])
@pytest.mark.parametrize("evaluation", ["stratified", "random"])
def test_choices_of_two_experts_equal_merged_copies(base, merged, low, blend, in_two, evaluation, shared):
    low_model, low_networks = low
    first, second = halves((base, low_model), blend, evaluation, JOBS if shared else RUNS)
    result = in_two(first.model, second.model)
    assert (choices(first).shape, choices(second).shape) == ((2, SPLIT), (2, STEPS - SPLIT))
    expected = in_two(
        switching_reference(base, merged[:3], choices(first), range(SPLIT)),
        switching_reference(low_model, low_networks, choices(second), range(STEPS - SPLIT)),
    )
    assert_equal(result, expected)


@pytest.mark.parametrize("evaluation", ["stratified", "random"])
def test_the_choices_of_one_job_are_those_of_one_run_in_all_steps(graph, base, low, blend, in_two, evaluation):
    first, second = halves((base, low[0]), blend, evaluation)
    in_two(first.model, second.model, cfg=1.0)
    whole = host.submodule("nodes.host.apply").apply_blend(base, blend, ESTIMATORS[evaluation], "auto", 7)
    graph.plain(whole.model, latent_image=latent(2), steps=STEPS, cfg=1.0)
    assert torch.equal(torch.cat([choices(first), choices(second)], 1), choices(whole))


@pytest.mark.parametrize("evaluation", ["stratified", "random"])
def test_without_a_job_the_second_run_does_not_repeat_the_choices_of_the_first(base, low, blend, in_two, evaluation):
    images = latent(8, (4, 4, 4))
    models = halves((base, low[0]), blend, evaluation, RUNS)
    in_two(*(half.model for half in models), images, cfg=1.0, split=STEPS // 2)
    first, second = map(choices, models)
    same = (first == second).double().mean()
    # Of 40 choices with probabilities 0.2, 0.5, 0.3, 0.38 agree by chance, to within 0.08.
    assert same < 0.38 + 5 * 0.08 and not torch.equal(first, second)


@pytest.mark.parametrize("evaluation", ["exact", "stratified", "budget", "merged"])
def test_a_job_of_one_run_is_no_job_bit_for_bit(graph, base, blend, evaluation):
    inputs = {"latent_image": noisy_latent(2), "steps": 4, "cfg": 1.0}
    models = (graph.applied(base, blend, evaluation=evaluation, job_steps=steps) for steps in (4, 0))
    assert torch.equal(*(graph.plain(model, **inputs) for model in models))


def test_a_budget_that_pays_for_every_step_is_exact_in_both_halves(graph, base, low, blend, in_two):
    jobs = ({"job_steps": STEPS}, {"job_steps": STEPS, "start_at_step": SPLIT})
    everything = [
        graph.applied(model, blend, evaluation="budget", budget=16.0, **job)
        for model, job in zip((base, low[0]), jobs, strict=True)
    ]
    assert_equal(in_two(*everything), in_two(*(graph.applied(model, blend) for model in (base, low[0]))))


def test_a_schedule_counts_the_steps_of_the_job(nodes, graph, base, low, files, in_two):
    first = graph.blend(files[:2], "1, 0")
    last = replace(graph.blend(files[:2], "0, 1"), bases=first.bases)
    (schedule,) = nodes["BlendSchedule"].execute(blends={"blend_0": first, "blend_1": last}, curve="linear").result
    applied = halves((base, low[0]), schedule, "exact")
    in_two(*(half.model for half in applied), cfg=1.0)
    table = torch.cat([half.wrappers.last.plan.weights for half in applied])
    falling = torch.linspace(1, 0, STEPS, dtype=torch.float64)
    torch.testing.assert_close(table, torch.stack([falling, 1 - falling], 1))
    runs = halves((base, low[0]), schedule, "exact", RUNS)
    in_two(*(half.model for half in runs), cfg=1.0)
    assert runs[1].wrappers.last.plan.weights[0].tolist() == [1, 0], "without a job every run counts its own steps"


def test_a_region_counts_the_steps_of_the_job(nodes, graph, base, low, files, in_two):
    first = graph.blend(files[:2], "1, 0")
    last = replace(graph.blend(files[:2], "0, 1"), bases=first.bases)
    (schedule,) = nodes["BlendSchedule"].execute(blends={"blend_0": first, "blend_1": last}, curve="linear").result
    (painted,) = nodes["BlendRegion"].execute(blend=schedule, mask=torch.ones(1, 8, 8)).result
    expected, result = (
        in_two(*(half.model for half in halves((base, low[0]), blend, "exact"))) for blend in (schedule, painted)
    )
    assert_equal(result, expected)


def test_steps_that_do_not_fit_into_the_job_are_refused(graph, base, blend, in_two):
    for job, message in (
        ({"job_steps": 8, "start_at_step": 4}, r"makes 6 steps from step 4 of a job of 8 on, .* \(at least 10 here\)"),
        ({"start_at_step": 4}, "start_at_step is 4 and job_steps 0"),
        ({"job_steps": 10, "start_at_step": 10}, "start_at_step is 10 and job_steps 10"),
    ):
        with pytest.raises(core.BlendError, match=message):
            in_two(base, graph.applied(base, blend, **job))


def test_the_report_says_which_steps_count(base, blend):
    first, second = halves((base, base), blend, "exact")
    assert "count the steps of a job of 10, from step 0 on" in first.report
    assert "count the steps of a job of 10, from step 4 on" in second.report
    (run,) = halves((base,), blend, "exact", (Job(),))
    assert "count the steps" not in run.report


@pytest.fixture
def pair(reward_loras, lora_folder):
    """The names of two files, for high noise and for low."""
    (high, _), (low, _), _ = reward_loras
    return [
        loras.write_kohya(replace(lora, label=f"pair_{word}_noise"), lora_folder)
        for word, lora in (("high", high), ("low", low))
    ]


def test_one_setting_loads_either_file_of_a_pair(nodes, graph, base, merged, pair):
    for chosen in pair:
        for i, expert in enumerate(("high noise", "low noise")):
            options = {"lora_name": chosen, "label": "", "kl_weight": 0.0, "scale": 0.0, "expert": expert}
            output = nodes["LoadRewardLoRA"].execute(**options)
            expected = graph.plain(blended_reference(base, [merged[i + 1]], [1.0]))
            assert_equal(graph.blended(base, graph.blend(output.result)), expected)
            assert (f"file: {pair[i]}" in str(output.ui)) is (chosen != pair[i])


def test_a_partner_that_is_not_there_is_refused_before_anything_runs(nodes, files, pair):
    check = nodes["LoadRewardLoRA"].validate_inputs
    assert check(lora_name=pair[0], expert="low noise") is True
    assert check(lora_name=pair[0], expert=None) is True, "a link brings expert"
    for name, expert, words in [
        (files[0], "low noise", "everything.safetensors has no partner for low noise"),
        ("gone.safetensors", "low noise", "gone.safetensors is not in models/loras"),
        (files[0], "middle", "expected one of as chosen"),
    ]:
        with pytest.raises(host.submodule("blend_core").BlendError, match=words):
            check(lora_name=name, expert=expert)


def test_another_partner_is_another_result(nodes, pair):
    fingerprint = nodes["LoadRewardLoRA"].fingerprint_inputs
    high, low = (fingerprint(lora_name=pair[0], expert=expert) for expert in ("as chosen", "low noise"))
    assert high != low == fingerprint(lora_name=pair[1])
