"""Maximin KSampler: weights that stay where rewards are equal, and move to the worse one where they are not."""

import comfy.sd
import comfy.taesd.taesd
import folder_paths
import pytest
import torch

from . import networks
from .graphs import latent
from .host import submodule
from .reference import ROUNDING, _apply, _replaced, assert_differ, assert_equal, relative_error

OWN = {
    "light.py": "def light(images): return images.mean((1, 2, 3))\nlight.usual_range = (0, 1)\n",
    "dark.py": "def dark(images): return 1 - images.mean((1, 2, 3))\ndark.usual_range = (0, 1)\n",
    "flat.py": "def flat(images): return images.new_full((len(images),), 0.3)\nflat.usual_range = (0, 1)\n",
    "unranged.py": "def unranged(images): return images.mean((1, 2, 3))\n",
    "broken.py": "def broken(images): return images.mean((1, 2, 3)) / 0 * 0\nbroken.usual_range = (0, 1)\n",
}
INPUTS = {"latent_image": latent(batch=2), "steps": 4}


@pytest.fixture(scope="module")
def vae():
    """A VAE that ComfyUI detects and loads: TAESD with random weights."""
    state = networks.filled(comfy.taesd.taesd.TAESD(latent_channels=4), seed=5)
    return comfy.sd.VAE(sd=state)


@pytest.fixture
def reward(nodes, tmp_path, monkeypatch):
    """Load Reward Model, on the rewards above."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "reward_models", ([str(tmp_path)], set()))
    for name, code in OWN.items():
        (tmp_path / name).write_text(code)

    def load(name):
        node = nodes["LoadRewardModel"]
        return node.execute(reward_name=name, device="default", precision="auto").result[0]

    return load


def maximin(graph, model, blend, vae, rewards, execution="batched", **options):
    """Maximin KSampler: its latents and its text."""
    settings = {"prompt": "", "targets": "", "scales": "", "rate": 2.0, "every": 1}
    settings |= {name: options.pop(name) for name in list(options) if name in settings}
    slots = {f"reward_{i}": entry for i, entry in enumerate(rewards)}
    sampling = graph._inputs(INPUTS | options)
    node = graph.nodes["MaximinKSampler"]
    made = node.execute(model=model, blend=blend, vae=vae, rewards=slots, execution=execution, **settings, **sampling)
    return made.result[0]["samples"], made.result[1]


@pytest.fixture
def blend(graph, files):
    return graph.blend(files[:2], "0.625, 0.375", alignment=0.9)


@pytest.mark.parametrize("execution", ["batched", "sequential"])
@pytest.mark.parametrize(("names", "rate"), [(("flat.py", "flat.py"), 2.0), (("light.py", "dark.py"), 0.0)])
def test_where_nothing_moves_it_is_blended_ksampler(graph, base, blend, vae, reward, execution, names, rate):
    result, text = maximin(graph, base, blend, vae, map(reward, names), execution, rate=rate)
    assert torch.equal(result, graph.blended(base, blend, execution, **INPUTS))
    assert text.count("r0 0.625, r1 0.375") == 2 * 4  # the start and three changes of two images


def test_after_the_cut_the_base_is_alone_and_weights_rest(graph, base, blend, vae, reward):
    far = blend.aligned(2)  # so that the last steps show
    ended = far.cut(0.5)
    result, text = maximin(graph, base, ended, vae, map(reward, ("flat.py", "flat.py")))
    assert_equal(result, graph.blended(base, ended, **INPUTS))
    assert relative_error(result, graph.blended(base, far, **INPUTS)) > 10 * ROUNDING
    assert text.count("r0 0.625, r1 0.375") == 2 * 2  # the start and one change of two images


def test_a_whole_model_moves_as_the_lora_that_is_merged_into_it(graph, base, files, reward_loras, vae, reward):
    model = networks.sd15()
    reward_loras[1][0].merge_into(model.model)
    results = [
        maximin(graph, base, graph.blend([files[0], second], "0.6, 0.4"), vae, map(reward, ("light.py", "dark.py")))
        for second in (graph.whole(model, "r1"), files[1])
    ]
    assert_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def steered(graph, base, blend, vae, rewards, every=1, rate=2.0, **inputs):
    """The run of the node, with its steering: (latents, moves)."""
    module, patching = submodule("nodes.maximin"), submodule("nodes.host.apply")
    panel = module._panel(vae, list(rewards), "", "", "", blend.schedule.blends[0])
    result = patching.sample(
        base,
        blend,
        submodule("blend_core.estimators").exact,
        "batched",
        steered=lambda steps: module.WorstFirst(blend.schedule.blends[0], panel, rate, every, steps),
        **graph._inputs(INPUTS | inputs),
    )
    return result.latent["samples"], result.steering.moves


def test_weights_move_to_the_worse_reward_of_each_image(graph, base, blend, vae, reward):
    _, moves = steered(graph, base, blend, vae, map(reward, ("light.py", "dark.py")))
    assert [step for step, *_ in moves] == [1, 2, 3]
    before = torch.tensor([[0.625, 0.375]] * 2, dtype=torch.float64)
    for _, preference, scores in moves:
        torch.testing.assert_close(scores.sum(1), torch.ones(2, dtype=torch.float64))  # light and dark
        first_is_worse = scores[:, 0] < scores[:, 1]
        assert torch.equal(preference[:, 0] > before[:, 0], first_is_worse)
        before = preference
    assert not torch.allclose(before[0], before[1])  # every image has its own


def test_the_moved_weights_are_those_of_each_images_prediction(graph, base, merged, blend, vae, reward):
    result, moves = steered(graph, base, blend, vae, map(reward, ("light.py", "dark.py")), rate=30.0)
    start = torch.tensor([[0.625, 0.375]] * 2, dtype=torch.float64)
    steps = iter([start, *(preference for _, preference, _ in moves)])

    def predict(call):
        preference = next(steps)
        coefficients = torch.cat([torch.full((2, 1), 0.1), 0.9 * preference.float()], dim=1).T
        weights = coefficients.repeat(1, len(call["input"]) // 2)[..., None, None, None]
        return sum(c * _apply(network, call) for c, network in zip(weights, merged[:3], strict=True))

    assert_equal(result, graph.plain(_replaced(base, predict), **INPUTS))
    assert_differ(result, graph.blended(base, blend, **INPUTS))


def test_changes_come_after_every_so_many_steps(graph, base, blend, vae, reward):
    rewards = [reward("light.py"), reward("dark.py")]
    _, moves = steered(graph, base, blend, vae, rewards, every=2, steps=6)
    assert [step for step, *_ in moves] == [2, 4]


def test_targets_and_scales_decide_which_reward_is_worse(graph, base, blend, vae, reward):
    rewards = [reward("flat.py"), reward("unranged.py")]
    _, text = maximin(graph, base, blend, vae, rewards, targets="0.2, 5", scales="0.5, 1")
    first, *_ = [line for line in text.splitlines() if line.startswith("step 1")]
    assert "attained r0 0.2, r1 -" in first
    assert float(first.split("r1 ")[1].split(" ")[0]) > 0.375


@pytest.mark.parametrize("sampler_name", ["heun", "dpmpp_2m_sde", "euler_ancestral"])
def test_samplers_of_several_calls_change_between_steps_only(graph, base, blend, vae, reward, sampler_name):
    flat = [reward("flat.py")] * 2
    result, text = maximin(graph, base, blend, vae, flat, sampler_name=sampler_name)
    assert torch.equal(result, graph.blended(base, blend, sampler_name=sampler_name, **INPUTS))
    assert text.count("step ") == 2 * 3


def test_the_model_is_as_before_and_a_second_run_is_the_first(graph, base, blend, vae, reward, plain):
    rewards = [reward("light.py"), reward("dark.py")]
    result, text = maximin(graph, base, blend, vae, rewards)
    again, same = maximin(graph, base, blend, vae, rewards)
    assert torch.equal(result, again) and text == same
    with pytest.raises(ValueError, match="with NaN or infinite values"):
        maximin(graph, base, blend, vae, [reward("light.py"), reward("broken.py")])
    assert torch.equal(graph.plain(base), plain)
    assert torch.equal(graph.blended(base, blend), graph.blended(base.clone(), blend))


def test_with_too_few_steps_it_says_so(graph, base, blend, vae, reward):
    rewards = [reward("light.py"), reward("dark.py")]
    assert "too few steps" in maximin(graph, base, blend, vae, rewards, every=4)[1]
    assert maximin(graph, base, blend, vae, rewards, denoise=0.0)[1] == "no step was sampled"


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["flat.py"], {}, "1 reward models came for 2 reward LoRAs"),
        (["flat.py", "unranged.py"], {}, "usual range of .*unranged.* is not stated, so type the targets"),
        (["flat.py", "unranged.py"], {"targets": "0, 0"}, "so type the scales"),
        (["flat.py", "flat.py"], {"targets": "1"}, "1 targets came for 2 rewards"),
        (["flat.py", "flat.py"], {"scales": "1, 0"}, "expected numbers above 0"),
        (["flat.py", "flat.py"], {"scales": "much"}, "not numbers"),
    ],
)
def test_unusable_input_is_refused_before_anything_runs(graph, base, blend, vae, reward, names, options, message):
    with pytest.raises(ValueError, match=message):
        maximin(graph, base, blend, vae, map(reward, names), **options)


def test_schedules_and_regions_are_refused(graph, nodes, base, blend, vae, reward):
    region = nodes["BlendRegion"].execute(blend=blend, mask=torch.ones(1, 8, 8)).result[0]
    schedule = nodes["BlendSchedule"].execute(blends={"blend_0": blend, "blend_1": blend.aligned(0.5)}, curve="linear")
    for other in (region, schedule.result[0]):
        with pytest.raises(ValueError, match="a schedule, window or region came"):
            maximin(graph, base, other, vae, [reward("flat.py")] * 2)


def test_rewards_below_0_are_refused(graph, base, files, vae, reward):
    signed = graph.blend(files[:2], "1, -0.5", normalise=False)
    with pytest.raises(ValueError, match=r"the blend is 0\.5 base \+ 1 r0 - 0\.5 r1, expected no reward below 0"):
        maximin(graph, base, signed, vae, [reward("flat.py")] * 2)
