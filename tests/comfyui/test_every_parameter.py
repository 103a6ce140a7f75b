"""Every parameter of every network, changed one at a time: the picture moves as it does under ComfyUI's own merge.

The parameters are taken from the network, so that no new family slips through, and no new kernel that reads a weight in
a way of its own. Of blocks that a network repeats the first is taken; DIFFUSION_BLEND_EVERY=1 takes all.
"""

import os
import re

import comfy.sd
import pytest
import torch

from . import loras
from .every_family import EVERY, empty, flat, present
from .families import named
from .graphs import Graph
from .reference import ROUNDING

RANK = 2
SHARE = 0.02  # of the effect of a change: what a blend may differ from the merge by
SAMPLING = {"steps": 1, "cfg": 1.0}


def chosen(network):
    """(name, parameter) of those to change."""
    kinds = {}
    for name, parameter in network.named_parameters():
        kind = name if os.environ.get("DIFFUSION_BLEND_EVERY") else (re.sub(r"\d+", "n", name), parameter.dim())
        kinds.setdefault(kind, (name, parameter))
    return kinds.values()


def changes(model):
    """(parameter, tensors of a file that changes it alone), by ComfyUI's own names."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return 0.5 * torch.randn(shape, generator=generator)

    modules = dict(model.model.named_modules())
    for name, parameter in chosen(model.model.diffusion_model):
        key, shape = f"diffusion_model.{name}", tuple(parameter.shape)
        owner, _, attribute = key.rpartition(".")
        if attribute == "weight" and len(shape) > 1 and not isinstance(modules[owner], torch.nn.Embedding):
            width = parameter[0].numel()
            pair = {"lora_down.weight": draw(RANK, *shape[1:]) / width**0.5, "lora_up.weight": draw(shape[0], RANK)}
            yield name, {f"{owner}.{role}": tensor for role, tensor in pair.items()}
        elif attribute == "weight":
            yield name, {f"{owner}.diff": draw(*shape)}
        elif attribute == "bias" and isinstance(getattr(modules[owner], "weight", None), torch.Tensor):
            yield name, {f"{owner}.diff_b": draw(*shape)}
        else:
            yield name, {f"{key}.diff": draw(*shape)}


def with_added(model, name, difference, sample):
    """sample() with a difference in a parameter itself."""
    parameter = model.model.diffusion_model.get_parameter(name)
    original = parameter.data
    parameter.data = original + difference.to(original)
    try:
        return sample()
    finally:
        parameter.data = original


def forget(model, names):
    """Let a network go of what it keeps."""
    for module in model.model.modules():
        for name in names:
            if isinstance(kept := vars(module).get(name), list | dict):
                kept.clear()


def far(first, second):
    """The largest difference."""
    return float((first - second).abs().max())


@pytest.mark.parametrize("family", present(EVERY))
def test_every_parameter_reaches_the_picture(family, nodes, lora_folder, caplog):
    model, reference = family.load(), family.load()
    graph = Graph(nodes, family.prompt(51), family.prompt(52))
    inputs = {"latent_image": empty(family), **SAMPLING}
    plain, wrong, seen = flat(graph.plain(model, **inputs)), {}, 0
    for name, tensors in changes(model):
        caplog.clear()
        forget(reference, family.keeps)  # ComfyUI would take what the last change made of the prompt
        merged, _ = comfy.sd.load_lora_for_models(reference, None, dict(tensors), 1.0, 0.0)
        expected = flat(graph.plain(merged, **inputs))
        if torch.equal(expected, plain) and len(tensors) == 1:  # ComfyUI drops it: a parameter of a module with parts
            forget(reference, family.keeps)
            expected = flat(with_added(reference, name, *tensors.values(), lambda: graph.plain(reference, **inputs)))
        assert "not loaded" not in caplog.text, (name, caplog.text)
        file = loras.save(tensors, lora_folder, "one_parameter.safetensors")
        try:
            came = flat(graph.plain(graph.applied(model, graph.blend([file]), "sequential"), **inputs))
        except Exception as error:
            wrong[name] = f"{type(error).__name__}: {error}"
            continue
        effect, error = far(expected, plain), far(came, expected)
        seen += effect > 0
        if error > max(SHARE * effect, ROUNDING / 10 * float(expected.abs().max())):
            wrong[name] = f"off by {error / max(effect, 1e-30):.2f} of the effect {effect:.2g}"
    assert torch.equal(flat(graph.plain(model, **inputs)), plain)
    assert not wrong, f"{len(wrong)} of {seen}: {wrong}"


def test_a_node_says_which_way_a_change_took(nodes, lora_folder):
    """Lumina's norms are read by a kernel of ComfyUI 0.33; older ones call them."""
    family = named("Lumina 2")
    model, graph = family.load(), Graph(nodes, family.prompt(51), family.prompt(52))
    known = dict(changes(model))
    norm = next(name for name in known if name.endswith("attention.q_norm.weight"))
    file = loras.save(known[norm], lora_folder, "one_norm.safetensors")
    inputs = graph._inputs({"latent_image": empty(family), **SAMPLING})
    node = nodes["BlendedKSampler"]
    text = node.execute(model=model, blend=graph.blend([file]), execution="auto", **inputs).ui["text"][0]
    called = []
    module = model.model.diffusion_model.get_submodule(norm.removesuffix(".weight"))
    with torch.no_grad():
        handle = module.register_forward_hook(lambda *_: called.append(True))
        graph.plain(model, latent_image=empty(family), **SAMPLING)
        handle.remove()
    assert ("changed through their weights" in text) is not bool(called), text
