"""Nodes of ComfyUI in the same graph: with each of them a blend equals the blend of merged copies, or says why not.

The nodes stand before Apply Blend and after it. Those with an own file or another network: test_upstream_patches.
"""

import os
from functools import partial

import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras import nodes_custom_sampler as custom
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_cfg import CFGNorm, CFGZeroStar
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_eps import EpsilonScaling
from comfy_extras.nodes_freelunch import FreeU
from comfy_extras.nodes_mahiro import Mahiro
from comfy_extras.nodes_nag import NAGuidance
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import PerpNegGuider
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from comfy_extras.nodes_tcfg import TCFG
from comfy_extras.nodes_torch_compile import TorchCompileModel

from . import networks
from .family_cases import ALIGNMENT, EXECUTIONS, assert_blends, coefficients
from .graphs import latent
from .reference import assert_differ, assert_equal, blended_reference


def node(kind, *arguments, **named_arguments):
    """The patch that a node is."""
    return lambda model: kind.execute(model, *arguments, **named_arguments).result[0]


GUIDANCE = {
    "PAG": ("SDXL", node(PerturbedAttentionGuidance, 3.0)),
    "SAG": ("SDXL", node(SelfAttentionGuidance, 0.7, 2.0)),
    "SLG": ("SD3", node(SkipLayerGuidanceDiT, 3.0, 0.0, 1.0, "0", "", 0.2)),
    "NAG": ("Flux", node(NAGuidance, 5.0, 0.5, 1.5)),
    "CFG-zero": ("SDXL", node(CFGZeroStar)),
    "CFG-norm": ("SDXL", node(CFGNorm, 0.8)),
    "APG": ("SDXL", node(APG, 0.5, 5.0, -0.3)),
    "TCFG": ("SDXL", node(TCFG)),
    "Mahiro": ("SDXL", node(Mahiro)),
    "epsilon scaling": ("SDXL", node(EpsilonScaling, 1.05)),
}


@pytest.mark.parametrize("name", GUIDANCE)
def test_guidance(cases, name):
    family, patch = GUIDANCE[name]
    assert_blends(cases(family), patch)


def test_freeu(cases, monkeypatch):
    case = cases("SDXL")  # which has layers of 2 and 1 times its width, and FreeU acts on 4 and 2
    monkeypatch.setitem(case.model.model.model_config.unet_config, "model_channels", 32)
    assert_blends(case, node(FreeU, 1.1, 1.2, 0.9, 0.2))


def test_differential_diffusion(cases):
    mask = torch.linspace(0, 1, 8).expand(1, 8, 8)
    image = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    assert_blends(cases("SDXL"), node(DifferentialDiffusion), latent_image={"samples": image, "noise_mask": mask})


def test_an_inpainting_model(cases):
    case = cases("inpainting")
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 20:] = 1
    concat = {"concat_latent_image": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(6))}
    concat["concat_mask"] = mask
    prompts = {
        role: [[tokens, extra | concat] for tokens, extra in case.family.prompt(seed)]
        for role, seed in (("positive", 51), ("negative", 52))
    }
    assert_blends(case, latent_image=latent(2, noise_mask=mask[0]), **prompts)


def test_prompts_of_unequal_batches_and_lengths(cases):
    case = cases("SDXL")
    extra = {"pooled_output": torch.cat([networks.pooled(seed, 1280) for seed in (1, 2)])}
    tokens = torch.cat([networks.conditioning(seed, case.family.width, 8)[0][0] for seed in (71, 72)])
    negative = networks.conditioning(73, case.family.width, 12, **case.family.extra(73))
    assert_blends(case, positive=[[tokens, extra]], negative=negative)


def test_lazy_cache(cases):
    """It skips whole predictions, above the blend."""
    assert_blends(cases("SDXL"), node(LazyCacheNode, 5.0, 0.0, 1.0, False), steps=6)


def test_easy_cache(cases):
    """Every basis skips the steps, and repeats the change, that it would if it were sampled alone."""
    case, computed = cases("Flux"), []

    def counted(executor, x, *args, **kwargs):
        computed[-1] += len(x)
        return executor(x, *args, **kwargs)

    def patch(model):
        cached = node(EasyCacheNode, 0.5, 0.15, 0.95, False)(model)
        cached.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", counted)
        return cached

    def sample(model, **inputs):
        computed.append(0)
        return case.graph.plain(model, **inputs)

    assert_blends(case, patch, sample=sample, through=_own_easycache, steps=8)
    assert len(set(computed)) == 1, computed
    assert 3 * 4 < computed[0] < 8 * 3 * 4  # 4 rows, of images and prompts: more than the first step, less than all
    inputs = {**case.inputs, "steps": 8}
    assert_differ(case.graph.plain(patch(case.model), **inputs), case.graph.plain(case.model, **inputs))


def _own_easycache(network):
    """A function wrapper under which `network` has an EasyCache of its own; for samplers of one call per step."""
    caches, step = [], []

    def wrapper(apply_model, call):
        options, sigma = call["c"]["transformer_options"], float(call["timestep"][0])
        if not caches:
            caches.append(options["easycache"].clone().prepare_timesteps(network.model_sampling))
        if step != [sigma]:
            step[:] = [sigma]
            caches[0].skip_current_step = False
        options["easycache"] = caches[0]
        return apply_model(call["input"], call["timestep"], **call["c"])

    return wrapper


def test_context_windows(cases):
    windows = node(ContextWindowsManualNode, 3, 1, "standard_static", 1, False, "pyramid", 2, False)
    case, inputs = cases("Wan 2.1"), {"latent_image": latent(1, (16, 6, 8, 8))}
    assert_blends(case, windows, shows=False, **inputs)
    whole = {**case.inputs, **inputs}
    assert_differ(case.graph.plain(windows(case.model), **whole), case.graph.plain(case.model, **whole))


# --- SamplerCustomAdvanced


def _guided(make_guider):
    """A sampler function for assert_blends: SamplerCustomAdvanced with the guider that make_guider gives."""

    def sample(model, *, latent_image, steps, **_):
        sigmas = custom.BasicScheduler.execute(model, "normal", steps, 1.0).result[0]
        noise = custom.RandomNoise.execute(1).result[0]
        sampler = comfy.samplers.sampler_object("euler")
        run = custom.SamplerCustomAdvanced.execute(noise, make_guider(model), sampler, sigmas, latent_image)
        return run.result[0]["samples"]

    return sample


def _prompts(case):
    return case.graph.positive, case.graph.negative, case.family.prompt(77)


GUIDERS = {
    "BasicGuider": lambda model, a, b, c: custom.BasicGuider.execute(model, a),
    "CFGGuider": lambda model, a, b, c: custom.CFGGuider.execute(model, a, b, 5.0),
    "DualCFGGuider": lambda model, a, b, c: custom.DualCFGGuider.execute(model, a, c, b, 4.0, 3.0, "regular"),
    "DualCFGGuider, nested": lambda model, a, b, c: custom.DualCFGGuider.execute(model, a, c, b, 4.0, 3.0, "nested"),
    "PerpNegGuider": lambda model, a, b, c: PerpNegGuider.execute(model, a, b, c, 5.0, 1.0),
    "DualModelGuider": lambda model, a, b, c: custom.DualModelGuider.execute(model, a, 4.0, model, b),
}


@pytest.mark.parametrize("name", GUIDERS)
def test_every_guider(cases, name):
    if not hasattr(custom, name) and name == "DualModelGuider":
        pytest.skip(f"{name} is not in this ComfyUI")
    case = cases("Flux")
    assert_blends(case, sample=_guided(lambda model: GUIDERS[name](model, *_prompts(case)).result[0]))


INDUCTOR = "DIFFUSION_BLEND_INDUCTOR"  # minutes on two cores
BACKENDS = [
    "eager",
    pytest.param("inductor", marks=pytest.mark.skipif(INDUCTOR not in os.environ, reason=f"slow: set {INDUCTOR}=1")),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("first", ["compiled, then blended", "blended, then compiled"])
def test_torch_compile(cases, first, execution, backend):
    """While it runs, the network lies inside a module of torch's."""
    case = cases("Qwen-Image")
    inputs = {**case.inputs, "steps": 1, "cfg": 1.0, "latent_image": latent(1, case.family.latent)}
    compiled = node(TorchCompileModel, backend)
    blended = partial(case.graph.applied, blend=case.blend(ALIGNMENT), execution=execution)
    model = blended(compiled(case.model)) if first.startswith("compiled") else compiled(blended(case.model))
    reference = blended_reference(case.model, case.networks, coefficients(ALIGNMENT))
    torch._dynamo.reset()  # what was compiled before counts towards a limit, above which it runs uncompiled
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert_equal(case.graph.plain(model, **inputs), case.graph.plain(reference, **inputs))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
