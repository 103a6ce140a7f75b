"""Every parameter of every network, changed one at a time: the picture moves as it does under ComfyUI's own merge.

The parameters are taken from the network, so that no new family slips through, and no new kernel that reads a weight in
a way of its own.
"""

import comfy.sd
import pytest
import torch

from . import loras
from .graphs import Graph
from .reference import ROUNDING
from .test_newer_families import EVERY, empty, present

RANK = 2
SHARE = 0.02  # of the effect of a change: what a blend may differ from the merge by
SAMPLING = {"steps": 1, "cfg": 1.0}


def changes(model):
    """(parameter, tensors of a file that changes it alone), by ComfyUI's own names."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return 0.5 * torch.randn(*shape, generator=generator)

    modules = dict(model.model.named_modules())
    for name, parameter in model.model.diffusion_model.named_parameters():
        key, shape = f"diffusion_model.{name}", tuple(parameter.shape)
        owner, _, attribute = key.rpartition(".")
        if attribute == "weight" and len(shape) > 1 and not isinstance(modules[owner], torch.nn.Embedding):
            width = parameter[0].numel()
            pair = {"lora_down.weight": draw(RANK, *shape[1:]) / width**0.5, "lora_up.weight": draw(shape[0], RANK)}
            yield name, {f"{owner}.{role}": tensor for role, tensor in pair.items()}
        elif attribute == "weight":
            yield name, {f"{owner}.diff": draw(*shape)}
        elif attribute == "bias":
            yield name, {f"{owner}.diff_b": draw(*shape)}
        else:
            yield name, {f"{key}.diff": draw(*shape)}


def far(first, second):
    """The largest difference."""
    return float((first - second).abs().max())


def flat(latents):
    """All streams of latents, each image in a row."""
    streams = latents.unbind() if latents.is_nested else [latents]
    return torch.cat([stream.flatten(1) for stream in streams], 1)


@pytest.mark.parametrize("family", present(EVERY))
def test_every_parameter_reaches_the_picture(family, nodes, lora_folder, caplog):
    model, reference = family.load(), family.load()
    graph = Graph(nodes, family.prompt(51), family.prompt(52))
    inputs = {"latent_image": empty(family), **SAMPLING}
    plain, wrong, seen = flat(graph.plain(model, **inputs)), {}, 0
    for name, tensors in changes(model):
        caplog.clear()
        merged, _ = comfy.sd.load_lora_for_models(reference, None, dict(tensors), 1.0, 0.0)
        expected = flat(graph.plain(merged, **inputs))
        assert "not loaded" not in caplog.text, (name, caplog.text)
        file = loras.save(tensors, lora_folder, "one_parameter.safetensors")
        try:
            came = flat(graph.plain(graph.applied(model, graph.blend([file]), "sequential"), **inputs))
        except Exception as error:
            wrong[name] = f"{type(error).__name__}: {error}"
            continue
        effect, error = far(expected, plain), far(came, expected)
        seen += effect > 0
        if error > max(SHARE * effect, ROUNDING / 100 * float(expected.abs().max())):
            wrong[name] = f"off by {error / max(effect, 1e-30):.2f} of the effect {effect:.2g}"
    assert torch.equal(flat(graph.plain(model, **inputs)), plain)
    assert not wrong, f"{len(wrong)} of {seen}: {wrong}"
