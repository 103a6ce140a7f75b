"""Blend Diagnostics: its numbers are those of separate models, its latent Blended KSampler's; it leaves no trace."""

import json
from itertools import pairwise

import comfy.samplers
import comfy.sd
import comfy.taesd.taesd
import comfy.utils
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from comfy_extras.nodes_custom_sampler import BasicScheduler, SamplerCustom

from . import networks
from .graphs import SAMPLING, Graph, latent
from .host import submodule
from .reference import _apply, _replaced, assert_differ, assert_equal
from .test_faults import interrupt

WEIGHTS = "0.6, 0.3, 0.1"
COEFFICIENTS = (0.0, 0.6, 0.3, 0.1)


def diagnose(graph, model, blend, execution="batched", reward=None, **inputs):
    """(picture, text, what the JSON says, samples)."""
    options = graph._inputs(inputs) | (reward or {})
    picture, text, written, made = (
        graph.nodes["Diagnostics"].execute(model=model, blend=blend, execution=execution, **options).result
    )
    return picture, text, json.loads(written), made["samples"]


def euler_of_copies(graph, model, copies, coefficients=COEFFICIENTS, **inputs):
    """[(sigma, x, predictions (1 + m, ...))] of an Euler run of the blend, each copy guided on its own."""
    active, recorded = {}, []
    switching = _replaced(model, lambda call: _apply(active["copy"], call))

    def sampler_function(model, x, sigmas, extra_args, callback=None, disable=None):
        for now, after in pairwise(sigmas):
            predictions = []
            for copy in copies:
                active["copy"] = copy
                predictions.append(model(x, now * x.new_ones(len(x)), **extra_args))
            recorded.append((float(now), x, torch.stack(predictions)))
            denoised = sum(c * d for c, d in zip(coefficients, predictions, strict=True))
            x = x + (x - denoised) / now * (after - now)
        return x

    s = graph._inputs(inputs)
    sigmas = BasicScheduler.execute(model, s["scheduler"], s["steps"], s["denoise"]).result[0]
    sampler = comfy.samplers.KSAMPLER(sampler_function)
    SamplerCustom.execute(
        switching, True, s["seed"], s["cfg"], s["positive"], s["negative"], sampler, sigmas, s["latent_image"]
    )
    return recorded


def expected_numbers(x, predictions):
    """(bends, cosines, the blend's bend), means over images, in plain formulas."""
    pulls = [(d - predictions[0]).flatten(1) for d in predictions[1:]]
    direction = (x - predictions[0]).flatten(1).norm(dim=1)
    cosine = torch.nn.functional.cosine_similarity
    pairs = [cosine(pulls[i], pulls[j]).mean().item() for i, j in ((0, 1), (0, 2), (1, 2))]
    blended = sum(c * pull for c, pull in zip(COEFFICIENTS[1:], pulls, strict=True)).norm(dim=1) / direction
    return [(pull.norm(dim=1) / direction).mean().item() for pull in pulls], pairs, blended.mean().item()


@pytest.mark.parametrize("execution", ["batched", "sequential"])
@pytest.mark.parametrize("cfg", [1.0, 7.0])
def test_the_numbers_are_those_of_merged_copies(graph, base, files, merged, cfg, execution):
    inputs = {"cfg": cfg, "latent_image": latent(batch=2)}
    blend = graph.blend(files, WEIGHTS)
    picture, text, read, samples = diagnose(graph, base, blend, execution, **inputs)
    recorded = euler_of_copies(graph, base, merged, **inputs)
    assert len(read["steps"]) == len(recorded) == SAMPLING["steps"]
    for step, (sigma, x, predictions) in zip(read["steps"], recorded, strict=True):
        bends, cosines, bend = expected_numbers(x, predictions)
        assert step["sigma"] == pytest.approx(sigma) and step["coefficients"] == pytest.approx(COEFFICIENTS)
        assert step["bends"] == pytest.approx(bends, rel=1e-4)
        assert step["cosines"] == pytest.approx(cosines, abs=1e-4)
        assert step["bend"] == pytest.approx(bend, rel=1e-4)
    assert torch.equal(samples, graph.blended(base, blend, execution, **inputs))
    assert read["blend_evaluations"] == 3 * 3 and read["evaluations"] == 3 * (3 + 4 + 1)  # base, three LoRAs, merged
    assert picture.shape[0] == 1 and picture.shape[2:] == (1000, 3) and 0 < picture.std() < 1
    assert "Verdict: " in text and "everything" not in text.split("\n")[0]


@pytest.mark.parametrize("execution", ["batched", "sequential"])
def test_the_gap_of_merged_is_that_of_a_copy_with_all_loras(graph, base, files, reward_loras, merged, execution):
    """At the states that the blend goes through."""
    inputs = {"cfg": 7.0, "latent_image": latent(batch=2)}
    _, text, read, _ = diagnose(graph, base, graph.blend(files, WEIGHTS), execution, **inputs)
    stack = networks.sd15().model
    for (lora, _), coefficient in zip(reward_loras, COEFFICIENTS[1:], strict=True):
        lora.merge_into(stack, coefficient)
    recorded = euler_of_copies(graph, base, [*merged, stack], coefficients=(*COEFFICIENTS, 0.0), **inputs)
    for step, (_, _, predictions) in zip(read["steps"], recorded, strict=True):
        blend = sum(c * d for c, d in zip(COEFFICIENTS, predictions, strict=False))
        apart, way = ((d - of).flatten(1) for d, of in ((predictions[-1], blend), (blend, predictions[0])))
        cosine = torch.nn.functional.cosine_similarity(apart, way).mean().item()
        gap = (apart.norm(dim=1) / way.norm(dim=1)).mean().item()
        # The difference of two predictions is a tenth of them: their rounding weighs ten times as much in it.
        assert step["merged"] == pytest.approx(gap, rel=1e-3) and gap > 0
        assert step["merged_cosine"] == pytest.approx(cosine, abs=1e-3)
    assert read["way"].startswith("Merged or exact: they differ by ") and read["way"] in text


@pytest.mark.parametrize("sampler_name", ["heun", "dpmpp_2m", "euler_ancestral"])
def test_every_step_is_recorded_once_and_the_picture_stays(graph, base, files, sampler_name):
    blend = graph.blend(files, WEIGHTS, alignment=1.5)
    *_, read, samples = diagnose(graph, base, blend, sampler_name=sampler_name)
    assert [step["step"] for step in read["steps"]] == [0, 1, 2]
    assert torch.equal(samples, graph.blended(base, blend, sampler_name=sampler_name))


def test_one_reward_alone_is_exact_and_the_base_is_compared_with(graph, base, files):
    _, text, read, _ = diagnose(graph, base, graph.blend(files[:1]))
    assert read["verdict"]["level"] == "exact" and "r0 alone" in text
    assert read["steps"][0]["bends"][0] > 0


@pytest.fixture(scope="module")
def vae():
    state = networks.filled(comfy.taesd.taesd.TAESD(latent_channels=4))
    return comfy.sd.VAE(sd=dict(state))


@pytest.fixture
def reward(nodes, vae):
    """Inputs of a small probe."""
    options = {"device": "default", "precision": "auto", "scale": "none", "allow_download": False}
    model = nodes["LoadRewardModel"].execute(reward_name="brightness", **options).result[0]
    return {"reward_model": model, "vae": vae, "samples": 4, "probes": 2}


def with_kl_weights(graph, files, kl_weight):
    """A blend whose LoRAs have their KL weight typed in."""
    load, weigh = graph.nodes["LoadRewardLoRA"], graph.nodes["BlendWeights"]
    slots = {
        f"lora_{i}": load.execute(lora_name=file, label=f"r{i}", kl_weight=kl_weight, scale=0.0).result[0]
        for i, file in enumerate(files)
    }
    return weigh.execute(loras=slots, weights="", normalise=True).result[0]


def test_the_probe_is_finite_and_leaves_the_model_as_it_was(graph, base, files, plain, reward):
    before = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    readings = {}
    for kl_weight in (1e3, 1e-7):
        blend = with_kl_weights(graph, files[:2], kl_weight)
        *_, read, samples = diagnose(graph, base, blend, reward=reward | {"reward_of": "r1"})
        assert [(gap["step"], gap["name"]) for gap in read["gaps"]] == [(0, "r1"), (1, "r1")]
        for gap in read["gaps"]:
            numbers = torch.tensor([gap["gap"], gap["standard_error"], gap["variation"]])
            assert torch.isfinite(numbers).all() and (numbers > -1e-12).all()
        readings[kl_weight] = read
    assert readings[1e-7]["gaps"][0]["gap"] > readings[1e3]["gaps"][0]["gap"]
    assert any("KL weight 1e-07 is too small" in reason for reason in readings[1e-7]["verdict"]["reasons"])
    assert not any("KL weight" in reason for reason in readings[1e3]["verdict"]["reasons"])
    assert readings[1e3]["evaluations"] == 3 * (2 + 3 + 1) + 4 * (3 + 2)
    assert torch.equal(samples, graph.blended(base, blend))
    after = base.model.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    assert not [name for name, module in base.model.named_modules() if "forward" in module.__dict__]
    assert torch.equal(graph.plain(base), plain)


def ancestral(model, x, sigmas, extra_args, callback=None, disable=None, state=None, generator=None, flow=False):
    """eta 1 in plain formulas, from `state`."""
    x = state
    for now, after in pairwise(sigmas.tolist()):
        denoised = model(x, now * x.new_ones(len(x)), **extra_args)
        if after == 0:
            return denoised
        noise = torch.randn(x.shape, generator=generator)
        if flow:
            down = after**2 / now
            shrink = (1 - after) / (1 - down)
            mean = shrink * (down / now * x + (1 - down / now) * denoised)
            spread = (after**2 - (down * shrink) ** 2) ** 0.5
        else:
            spread = after * (1 - (after / now) ** 2) ** 0.5
            mean = denoised + (x - denoised) * (after**2 - spread**2) ** 0.5 / now
        x = mean + spread * noise


@pytest.mark.parametrize("flow", [False, True])
def test_posterior_samples_are_ancestral_runs_of_the_plain_model(nodes, graph, base, flow):
    model, shape = (networks.load(networks.sd3()), (16, 8, 8)) if flow else (base, (4, 8, 8))
    extra = {"pooled_output": networks.pooled(53, 2048)}
    if flow:
        graph = Graph(nodes, *(networks.conditioning(seed, width=4096, **extra) for seed in (51, 52)))
    s = graph._inputs({"latent_image": latent(2, shape)})
    sigmas = BasicScheduler.execute(model, s["scheduler"], 4, 1.0).result[0]
    state = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3)) * float(sigmas[0])

    def draw(seed):
        options = {"state": state, "generator": torch.Generator().manual_seed(seed)}
        return submodule("nodes.host.posterior").draw_clean(model, sigmas, options, s)

    options = {"state": state, "generator": torch.Generator().manual_seed(1), "flow": flow}
    sampler = comfy.samplers.KSAMPLER(ancestral, options)
    expected = SamplerCustom.execute(
        model, False, s["seed"], s["cfg"], s["positive"], s["negative"], sampler, sigmas, s["latent_image"]
    ).result[0]["samples"]
    assert_equal(draw(1), expected)
    assert_differ(draw(2), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vae": None}, "no VAE"),
        ({"reward_of": "r7"}, "the blend has r0, r1"),
        ({"kl": 0.0}, "does not state the KL weight"),
        ({"latent_image": latent(noise_mask=torch.ones(1, 64, 64))}, "has a mask"),
        ({"denoise": 0.0}, "denoise is 0"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused(graph, base, files, reward, change, message):
    blend = with_kl_weights(graph, files[:2], change.get("kl", 1.0))
    inputs = {name: value for name, value in change.items() if name in ("latent_image", "denoise")}
    options = reward | {name: value for name, value in change.items() if name in ("vae", "reward_of")}
    with pytest.raises(ValueError, match=message):
        diagnose(graph, base, blend, reward=options, **inputs)


@pytest.fixture
def judges(nodes, vae):
    """Inputs that let two rewards decide between merged and exact; 5 seeds of 2 images."""
    options = {"device": "default", "precision": "auto", "scale": "none", "allow_download": False}
    names = ("brightness", "contrast")
    slots = {
        f"reward_{i}": nodes["LoadRewardModel"].execute(reward_name=name, **options).result[0]
        for i, name in enumerate(names)
    }
    return {"rewards": slots, "reward_weights": "0.75, 0.25", "vae": vae, "images": 5}


def test_rewards_score_what_both_evaluations_make_from_the_same_seeds(graph, base, files, vae, judges):
    inputs = {"latent_image": latent(batch=2), "seed": 7, "sampler_name": "euler_ancestral"}
    blend = graph.blend(files, WEIGHTS)
    picture, text, read, samples = diagnose(graph, base, blend, reward=judges, **inputs)
    assert torch.equal(samples, graph.blended(base, blend, **inputs))
    ways = {}
    for way in ("exact", "merged"):
        applied = graph.applied(base, blend, "batched", way)
        runs = [graph.plain(applied, **inputs | {"seed": 7 + i}) for i in range(5)]
        pixels = vae.decode(torch.cat(runs)).movedim(-1, 1)
        scores = [reward.reward(pixels, [""]) for reward in judges["rewards"].values()]
        ways[way] = [*scores, 0.75 * scores[0] + 0.25 * scores[1]]
    assert [score["name"] for score in read["scores"]] == ["brightness", "contrast", "the weighted reward"]
    for score, exact, merged in zip(read["scores"], *ways.values(), strict=True):
        assert score["pairs"] == 10 and score["exact"] == pytest.approx(exact.mean().item(), rel=1e-4)
        assert score["merged"] == pytest.approx(merged.mean().item(), rel=1e-4)
        expected = submodule("blend_core.rewards").Draws(1, 10).mean((exact - merged)[None].double().numpy())
        assert score["difference"] == pytest.approx(vars(expected), abs=1e-5)
    assert read["evaluations"] == 3 * (3 + 4 + 1) + 5 * 3 * (3 + 1)
    assert "10 pairs of images" in read["way"] and read["way"] in text and "exact - merged" in text
    assert picture.shape[1] > diagnose(graph, base, blend, **inputs)[0].shape[1]  # room for what rewards say


def test_progress_runs_once_over_all_pictures_and_an_interruption_leaves_no_hook(graph, base, files, judges):
    seen = []

    def hook(value, total, preview=None, node_id=None):
        seen.append((value, total))
        if stop and len(seen) > 20:
            interrupt()

    before = comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(hook)
    try:
        stop = False
        diagnose(graph, base, graph.blend(files, WEIGHTS), reward=judges | {"images": 8})
        compared = [value for value, total in seen if total == 8 * 2 * SAMPLING["steps"]]
        assert compared == sorted(compared) and compared[-1] == 8 * 2 * SAMPLING["steps"]
        seen, stop = [], True
        with pytest.raises(InterruptProcessingException):
            diagnose(graph, base, graph.blend(files, WEIGHTS), reward=judges | {"images": 8})
        assert comfy.utils.PROGRESS_BAR_HOOK is hook
    finally:
        comfy.utils.set_progress_bar_global_hook(before)


@pytest.mark.parametrize(
    ("change", "weights", "message"),
    [
        ({"vae": None}, WEIGHTS, "rewards are connected, but no VAE"),
        ({"images": 7}, WEIGHTS, "7 images of each way are to be scored, expected 8 or more"),
        ({"images": 8}, "1, 0, 0", "merged and exact are the same here"),
        ({"images": 8, "reward_weights": "1"}, WEIGHTS, "2 rewards"),
    ],
)
def test_what_rewards_cannot_compare_is_refused_before_anything_is_sampled(
    graph, base, files, judges, monkeypatch, change, weights, message
):
    monkeypatch.setattr(submodule("nodes.diagnostics"), "sample", lambda *_: pytest.fail("sampled"))
    with pytest.raises(ValueError, match=message):
        diagnose(graph, base, graph.blend(files, weights), reward=judges | change)


def test_a_whole_model_is_not_compared_with_merged(graph, base, files, judges):
    blend = graph.blend([graph.whole(base), files[1]])
    with pytest.raises(ValueError, match="whole is a whole model"):
        diagnose(graph, base, blend, reward=judges | {"images": 8})
