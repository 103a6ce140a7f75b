"""The families of newer_families.py: which classes they are, that they sample, what an engine has to know of them."""

import comfy.model_base
import comfy.supported_models
import pytest
import torch

from .every_family import EVERY, empty, flat, present
from .graphs import Graph
from .newer_families import FURTHER, REFUSED, VARIANTS
from .reference import ROUNDING


def sampled(family, nodes, model, batch=1, prompt=51):
    """Latents of two steps, flat."""
    graph = Graph(nodes, family.prompt(prompt), family.prompt(52))
    return flat(graph.plain(model, steps=2, cfg=3.0, latent_image=empty(family, batch)))


def test_every_class_of_comfyui_is_a_family_or_a_variant_or_refused():
    known = {family.kind for family in EVERY} | VARIANTS.keys() | REFUSED.keys()
    assert {kind.__name__ for kind in comfy.supported_models.models} <= known
    assert set(VARIANTS.values()) <= {family.name for family in EVERY}


@pytest.mark.parametrize("family", present(FURTHER))
def test_two_steps_are_sampled_and_the_prompt_matters(family, nodes):
    model = family.load()
    first = sampled(family, nodes, model)
    assert torch.isfinite(first).all()
    assert torch.equal(sampled(family, nodes, model), first)
    change = (sampled(family, nodes, model, prompt=53) - first).norm() / first.norm()
    assert change > (1e-6 if family.name != "SeedVR2" else 0)  # its prompt is one and the same, and hardly counts here


@pytest.mark.parametrize("family", present(f for f in EVERY if not f.sequential and not isinstance(f.latent[0], tuple)))
def test_the_first_image_of_a_batch_is_the_image_alone(family, nodes):
    """So that rows of one pass may be of different variants, unless the family says why not."""
    model = family.load()
    single_run, both = sampled(family, nodes, model), sampled(family, nodes, model, batch=2)
    assert (both[:1] - single_run).norm() <= ROUNDING * single_run.norm()


@pytest.mark.parametrize("family", present(f for f in EVERY if f.name in ("SVD", "ACE-Step 1.5", "MiniMax H3")))
def test_a_family_that_mixes_the_rows_of_a_batch_is_known_to(family, nodes):
    model = family.load()
    single_run = sampled(family, nodes, model)
    try:
        both = sampled(family, nodes, model, batch=2)
    except ValueError as error:
        assert "batch size 1" in str(error)
    else:
        assert (both[:1] - single_run).norm() > 0.01 * single_run.norm()


@pytest.mark.parametrize("family", present(EVERY))
def test_the_parts_that_run_while_the_prompt_is_prepared_are_known(family, nodes, monkeypatch):
    model, inside, outside, passing = family.load(), set(), set(), []
    original = comfy.model_base.BaseModel._apply_model

    def apply_model(self, *args, **kwargs):
        passing.append(True)
        try:
            return original(self, *args, **kwargs)
        finally:
            passing.pop()

    monkeypatch.setattr(comfy.model_base.BaseModel, "_apply_model", apply_model)
    for name, module in model.model.diffusion_model.named_modules():
        if name and any(True for _ in module.parameters()):
            module.register_forward_pre_hook(lambda *_, name=name: (inside if passing else outside).add(name))
    sampled(family, nodes, model)
    assert inside
    assert {name.split(".")[0] for name in outside} == set(family.before)
    assert not outside & inside


@pytest.mark.parametrize("family", present(EVERY))
def test_what_a_network_keeps_on_itself_is_known(family, nodes):
    model = family.load()
    before = _attributes(model.model.diffusion_model)
    sampled(family, nodes, model)
    after = _attributes(model.model.diffusion_model)
    changed = {name for (module, name) in after if before.get((module, name)) != after[module, name]}
    assert changed == set(family.keeps)


def _attributes(network):
    """What every module holds beside its parameters, by module and name; ComfyUI's own notes of loading left out."""
    return {
        (module, name): _described(value)
        for module, layer in network.named_modules()
        for name, value in vars(layer).items()
        if not name.startswith(("_parameters", "_buffers", "_modules", "comfy_")) and not name.endswith("_function")
    }


def _described(value):
    match value:
        case torch.Tensor():
            return (tuple(value.shape), float(value.double().abs().sum()))
        case list() | tuple():
            return tuple(map(_described, value))
        case dict():
            return tuple((str(key), _described(entry)) for key, entry in value.items())
    return type(value).__name__
