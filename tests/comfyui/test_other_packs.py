"""Packs that are not part of ComfyUI, by stand-ins that do what they do: a blend beside them equals merged copies."""

from functools import partial

import comfy.controlnet
import pytest
import torch
from comfy.t2i_adapter.adapter import Adapter
from comfy_extras.nodes_easycache import EasyCacheNode

from nodes import ControlNetApply

from . import companions, networks
from .family_cases import assert_blends
from .graphs import latent
from .host import submodule
from .reference import assert_differ, assert_equal

BlendError = submodule("blend_core").BlendError


def test_an_image_prompt(cases):
    """One for all images: several chunks and variants in a batch, layers of different weight."""
    assert_blends(cases("SDXL"), companions.image_prompt)


def test_an_image_prompt_for_part_of_the_image_and_of_the_steps(cases):
    mask = torch.zeros(1, 32, 32)
    mask[..., 16:] = 1
    case = cases("SDXL")
    early = partial(companions.image_prompt, masks=mask, end=0.2)
    assert_blends(case, early, steps=4)
    whole = case.graph.plain(companions.image_prompt(case.model, masks=mask), **{**case.inputs, "steps": 4})
    assert_differ(case.graph.plain(early(case.model), **{**case.inputs, "steps": 4}), whole)


def test_an_image_prompt_over_another(cases):
    def patch(model):
        return companions.image_prompt(companions.image_prompt(model), start=0.4)

    assert_blends(cases("SDXL"), patch)


@pytest.mark.parametrize(
    "companion",
    [
        {"images": 2},
        {"masks": torch.arange(2.0).view(2, 1, 1).expand(2, 32, 32)},
        {"weights": torch.tensor([0.2, 0.9]).view(2, 1, 1)},
    ],
    ids=["image", "mask", "weight"],
)
def test_something_of_its_own_for_each_image(cases, companion):
    """The pack counts rows from the batch's first on, and so a pass must not hold two variants."""
    assert_blends(cases("SDXL"), partial(companions.image_prompt, **companion))


def test_unlike_rewards_meet_an_image_prompt_of_each_image(cases):
    case = cases("SDXL")
    model = companions.image_prompt(case.model, images=2)
    applied = case.graph.applied(model, case.blend(0.8), evaluation="random", seed=1)
    with pytest.raises(BlendError, match="an image, a mask or a weight for each of the 2 images"):
        case.graph.plain(applied, **{**case.inputs, "steps": 6})
    one = {**case.inputs, "latent_image": latent(1), "steps": 6}
    assert case.graph.plain(applied, **one).isfinite().all()


@pytest.fixture(scope="module")
def t2i_adapter():
    """For "SDXL", whose latents of 8 are 4 inside."""
    network = Adapter(channels=[128, 128], nums_rb=1, cin=768, ksize=1, sk=True, use_conv=False, xl=True)
    network.load_state_dict(networks.filled(network, seed=8))
    network.requires_grad_(False)
    return comfy.controlnet.T2IAdapter(network, 3, 8, "nearest-exact", device=torch.device("cpu"))


def picture(height: int, width: int):
    """A random picture (1, height, width, 3)."""
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(32))


def test_a_t2i_adapter(cases, t2i_adapter):
    case = cases("SDXL")
    (positive,) = ControlNetApply().apply_controlnet(case.graph.positive, t2i_adapter, picture(64, 64), 0.8)
    assert_blends(case, positive=positive)


def test_a_sampler_for_each_tile(cases, t2i_adapter):
    """Each with the part of a control's picture and of a prompt's area that lies in it."""
    case = cases("SDXL")
    sample = companions.tile_after_tile(case.graph.plain, (8, 8), overlap=2)
    (positive,) = ControlNetApply().apply_controlnet(case.graph.positive, t2i_adapter, picture(64, 112), 0.8)
    left = [[tokens, extra | {"area": (8, 7, 0, 0), "strength": 1.0}] for tokens, extra in case.family.prompt(61)]
    image = torch.randn(2, 4, 8, 14, generator=torch.Generator().manual_seed(5))
    inputs = {"positive": [*positive, *left], "negative": case.graph.negative, "denoise": 0.6}
    inputs["latent_image"] = {"samples": image}
    assert_blends(case, sample=sample, shows=False, **inputs)
    whole = {**case.inputs, **inputs}
    assert_differ(sample(case.model, **whole), case.graph.plain(case.model, **whole))


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_tiles_in_one_batch(cases, at_once):
    case = cases("SDXL")
    wrapper = companions.in_tiles((6, 8), overlap=2, at_once=at_once)
    inputs = {"latent_image": latent(2, (4, 10, 14))}

    def patch(model):
        clone = model.clone()
        clone.set_model_unet_function_wrapper(wrapper)
        return clone

    assert_blends(case, patch, through=lambda network: wrapper, shows=False, **inputs)
    whole = {**case.inputs, **inputs}
    assert_differ(case.graph.plain(patch(case.model), **whole), case.graph.plain(case.model, **whole))


def test_one_reward_per_step_in_tiles(cases):
    """The tiles of one image take one reward at a step; those of two images cannot be told apart in one batch."""
    case = cases("SDXL")

    def sample(images, at_once):
        model = case.graph.applied(case.model, case.blend(0.8), evaluation="stratified", seed=1)
        model.set_model_unet_function_wrapper(companions.in_tiles((6, 8), overlap=2, at_once=at_once))
        return case.graph.plain(model, **{**case.inputs, "latent_image": latent(images, (4, 10, 14)), "steps": 4})

    assert_equal(sample(1, at_once=2), sample(1, at_once=1))
    with pytest.raises(BlendError, match="a step evaluates 4 images at once where the batch has 2"):
        sample(2, at_once=2)


def _cached(model, cache):
    clone = model.clone()
    clone.set_model_unet_function_wrapper(cache.wrapper(clone.get_model_object("diffusion_model")))
    return clone


@pytest.mark.parametrize("per_prompt", [False, True], ids=["one state", "one state per prompt"])
@pytest.mark.parametrize("kind", companions.StepCache.NAMES)
def test_a_cache_on_the_network(cases, kind, per_prompt):
    """Every basis skips the steps, and repeats the change, that it would if it were sampled alone."""
    case, computed = cases("Flux"), []
    cache = companions.StepCache(kind, 0.3, per_prompt)
    inputs = {**case.inputs, "steps": 8}

    def sample(model, **inputs):
        cache.computed = 0
        result = case.graph.plain(model, **inputs)
        computed.append(cache.computed)
        return result

    patch = partial(_cached, cache=cache)
    assert_blends(case, patch, sample=sample, through=lambda network: cache.wrapper(network.diffusion_model), steps=8)
    assert len(set(computed)) == 1, computed
    assert 3 * 4 < computed[0] < 8 * 3 * 4  # 4 rows, of images and prompts: more than the first step, less than all
    assert computed[0] % (3 * 4), "three bases that skip the same steps would not show whose decision it is"
    assert_differ(case.graph.plain(patch(case.model), **inputs), case.graph.plain(case.model, **inputs))


@pytest.mark.parametrize(
    "cached",
    [partial(EasyCacheNode.execute, reuse_threshold=0.5, start_percent=0.15, end_percent=0.95, verbose=False), None],
    ids=["EasyCache", "teacache"],
)
def test_a_look_at_every_basis_leaves_the_caches_alone(cases, cached):
    """Blend Diagnostics evaluates every basis beside the run; its latent is Blended KSampler's."""
    case = cases("Flux")
    inputs = {**case.inputs, "steps": 8}
    model = cached(case.model).result[0] if cached else _cached(case.model, companions.StepCache("teacache", 0.3, True))
    expected = case.graph.blended(model, case.blend(1.2), **inputs)
    options = {"execution": "batched", **case.graph._inputs(inputs)}
    latents = case.graph.nodes["Diagnostics"].execute(model=model, blend=case.blend(1.2), **options).result[3]
    assert torch.equal(latents["samples"], expected)
