"""The step that a blend believes in is the step that the sampler is at, for every sampler of ComfyUI."""

import comfy.sample
import comfy.samplers
import comfy.utils
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from . import loras, networks
from .graphs import Graph

STEPS = 6
# dpm_fast and dpm_adaptive choose noise levels of their own. sa_solver_pece reports the call that corrects a step as
# the first of the next; a blend counts it as heun's corrector, to the step it corrects.
ANOTHER_COUNT = {"dpm_fast", "dpm_adaptive", "sa_solver_pece"}
SAMPLERS = [name for name in comfy.samplers.KSampler.SAMPLERS if name not in ANOTHER_COUNT]


@pytest.fixture(scope="module")
def noise_model(graph, base, files):
    """SD 1.5 at one basis per step, its prompts and the shape of its latents."""
    return graph.applied(base, graph.blend(files), evaluation="stratified"), graph, (4, 4, 4)


@pytest.fixture(scope="module")
def flow_model(nodes, lora_folder):
    """Flux, likewise: ancestral samplers go another way on flow models."""
    model = networks.load(networks.flux())
    layers = loras.layers_of(model.model, comfy.utils.flux_to_diffusers(model.model.model_config.unet_config))
    lora = loras.random_lora("flow", layers[:2], rank=2, alpha=2.0, seed=1)
    prompts = [networks.conditioning(seed, 4096, pooled_output=networks.pooled(seed, 768)) for seed in (1, 2)]
    graph = Graph(nodes, *prompts)
    blend = graph.blend([loras.write_transformer(lora, lora_folder)])
    return graph.applied(model, blend, evaluation="stratified"), graph, (16, 4, 4)


@pytest.mark.parametrize("kind", ["noise_model", "flow_model"])
@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_every_call_of_the_network_has_the_samplers_step(request, sampler_name, kind):
    model, graph, shape = request.getfixturevalue(kind)
    believed, reported = [], []

    def network(executor, *args, **kwargs):
        believed.append(args[-1]["diffusion_blend"].step)
        return executor(*args, **kwargs)

    def callback(step, *_):
        # A sampler reports a step after its first call: what it called between two reports belongs to the earlier one.
        reported.extend(reported[-1:] * (len(believed) - 1 - len(reported)) + [step])

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", network)
    latent, cfg = torch.zeros(1, *shape), 1.0
    noise = comfy.sample.prepare_noise(latent, 1)
    sampling = (STEPS, cfg, sampler_name, "normal", graph.positive, graph.negative, latent)
    comfy.sample.sample(model, noise, *sampling, callback=callback, disable_pbar=True, seed=1)
    reported.extend(reported[-1:] * (len(believed) - len(reported)))
    assert believed == reported
    assert set(believed) == set(range(STEPS))
