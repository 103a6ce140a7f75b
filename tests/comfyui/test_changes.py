"""LoHa, LoKr, DoRA and differences: a blend of them equals the blend of copies that ComfyUI merged them into."""

import pytest
import torch

from . import kinds, loras
from .families import named
from .family_cases import coefficients
from .graphs import Graph, latent
from .host import submodule
from .kind_cases import ALIGNMENT, FAMILIES, KINDS
from .reference import ROUNDING, assert_differ, assert_equal, blended_reference, fused_reference


@pytest.mark.parametrize("kind", [*KINDS, "norms_and_biases"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_blend_equals_copies_that_comfyui_merged(kind_case, name, kind, caplog):
    this = kind_case(name, kind)
    reference = blended_reference(this.model, this.networks, coefficients(ALIGNMENT))
    expected = this.graph.plain(reference, **this.inputs)
    assert "not loaded" not in caplog.text and "ERROR" not in caplog.text  # what ComfyUI says of keys it drops
    assert_differ(expected, this.graph.plain(this.model, **this.inputs))
    for execution in ("batched", "sequential"):
        assert_equal(this.graph.blended(this.model, this.blend(), execution, **this.inputs), expected, ROUNDING)


@pytest.mark.parametrize("kind", ["lokr", "dora_of_columns"])
def test_one_per_step_and_msdda(kind_case, kind):
    """Images of a batch under different variants, and the fusion of steps."""
    this = kind_case("SD 1.5", kind)
    whole = {**this.inputs, "steps": 3}
    both, choices = this.graph.stochastic(this.model, this.blend(1.0), **whole)
    assert len(set(choices.flatten().tolist())) > 1
    for i in range(2):
        one = {**whole, "latent_image": latent(1, named("SD 1.5").latent, batch_index=[i])}
        single, again = this.graph.stochastic(this.model, this.blend(1.0), **one)
        if i == 0:
            assert torch.equal(again[0], choices[0])
            assert_equal(both[:1], single, ROUNDING)
    weights, etas = coefficients(1.0), (1.0, 0.7, 0.4)
    expected = fused_reference(this.graph, this.model, this.networks[1:], weights[1:], etas[1:], **this.inputs)
    came = this.graph.msdda(this.model, this.blend(1.0), etas="0.7, 0.4", **this.inputs)
    assert_equal(came, expected, ROUNDING)


def _dora_by_hand(network, tensors, layers, stem):
    """peft's DoRA: magnitudes over the norms of the changed weight's rows. ComfyUI takes those of the base's weight."""
    for layer in layers:
        down, up, magnitude = (
            tensors[f"{stem(layer.name)}.{role}"] for role in ("lora_down.weight", "lora_up.weight", "dora_scale")
        )
        weight = network.diffusion_model.get_submodule(layer.module).weight
        first, length = layer.rows or (0, layer.shape[0])
        part = weight.data[first : first + length]
        changed = part + (up.flatten(1) @ down.flatten(1)).view_as(part) / kinds.RANK
        norms = changed.flatten(1).norm(dim=1).view(-1, *[1] * (part.dim() - 1))
        part.copy_(changed * magnitude.view_as(norms) / norms)


@pytest.mark.parametrize("name", ["SD 1.5", "SD3"])
def test_dora_of_rows_is_what_was_trained(nodes, lora_folder, name):
    this, stem = named(name), FAMILIES[name]
    model, graph = this.load(), Graph(nodes, this.prompt(51), this.prompt(52))
    layers = [layer for layer in this.layers(model) if layer.reorder is None]
    tensors = kinds.written(kinds.dora_of_rows, layers, stem, seed=1)
    loras.save(tensors, lora_folder, f"{this.kind}_rows.safetensors")
    tuned = this.load()
    _dora_by_hand(tuned.model, tensors, layers, stem)
    inputs = {"latent_image": latent(2, this.latent), "cfg": 3.0, "steps": 2}
    expected = graph.plain(blended_reference(model, [model.model, tuned.model], (0.3, 0.7)), **inputs)
    blend = graph.blend([f"{this.kind}_rows.safetensors"], "1", alignment=0.7)
    for execution in ("batched", "sequential"):
        assert_equal(graph.blended(model, blend, execution, **inputs), expected, ROUNDING)


def test_memory_is_stated_beside_the_formula(kind_case):
    this, patching = kind_case("SD 1.5", "lokr"), submodule("nodes.host.apply")
    exact = submodule("blend_core.estimators").exact
    report = patching.apply_blend(this.model, this.blend(), exact, "auto", seed=0).report
    assert "LoKr in" in report and "slower than plain LoRA" in report and "one layer at a time" in report
