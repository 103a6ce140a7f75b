"""Blend Weights with the LORA_STACK of other packs: (file name, model strength, clip strength) each."""

from dataclasses import replace

import pytest
import torch

from nodes import LoraLoaderModelOnly  # ComfyUI's own

from . import host, kinds, loras, networks
from .reference import assert_differ, assert_equal, blended_reference


@pytest.fixture
def weigh(nodes):
    """weigh(stack, slots): Blend Weights' blend."""

    def run(stack, slots=(), weights=""):
        loras = {f"lora_{i}": lora for i, lora in enumerate(slots)}
        return nodes["BlendWeights"].execute(loras, weights, normalise=True, lora_stack=stack).result[0]

    return run


@pytest.fixture
def error():
    """The exception a user meets."""
    return host.submodule("blend_core").BlendError


@pytest.fixture
def loader(nodes):
    """loader(file): what Load Reward LoRA makes of it."""
    return lambda file: nodes["LoadRewardLoRA"].execute(file, label="", kl_weight=0.0, scale=0.0).result[0]


def test_a_stack_comes_after_the_slots_as_load_reward_lora_reads_its_files(weigh, loader, files):
    slot, *loaded = map(loader, files)
    blend = weigh([(files[1], 1.0, 0.3), [files[2], 1, 0]], [slot, None], "0.5, 0.3, 0.2")
    assert blend.bases[0] is slot and len(blend.bases) == 3
    for lora, expected in zip(blend.bases[1:], loaded, strict=True):
        assert (lora.label, lora.kl_weight, lora.adapter.path) == (
            expected.label,
            expected.kl_weight,
            expected.adapter.path,
        )
    assert blend.names == tuple(lora.label for lora in (slot, *loaded))
    assert blend.schedule.blends[0].preference == (0.5, 0.3, 0.2)


def test_rows_without_a_file_are_left_out_and_take_no_weight(weigh, files):
    rows = [("None", 1.0, 1.0), (files[0], 1.0, 1.0), ("", 0.0, 0.0), (None, 1, 1), (files[1], 1.0, 1.0)]
    blend = weigh(rows, weights="0.7, 0.3")
    assert [basis.label for basis in blend.bases] == [file.split("/")[0].split(".")[0] for file in files[:2]]
    assert blend.schedule.blends[0].preference == (0.7, 0.3)


def test_a_name_as_windows_writes_it_is_the_same_file(weigh, nodes, files):
    (name,) = (file for file in files if "/" in file)
    windows = name.replace("/", "\\")
    blend = weigh([(windows, 1.0, 1.0), (name, 1.0, 1.0)])
    assert blend.bases[0] is blend.bases[1]
    assert nodes["LoadRewardLoRA"].validate_inputs(lora_name=windows) is True


@pytest.mark.parametrize("strengths", [(0.8, 1.0), (-2.0, 0.5), (10.0, -10.0)])
def test_a_model_strength_is_the_strength_of_merging(graph, base, weigh, reward_loras, lora_folder, strengths):
    # A tenth as large, or else 10 times as much makes a network in which rounding grows to a thousandth in one step.
    scaled = [replace(lora, label=f"tenth_{lora.label}", alpha=lora.alpha / 10) for lora, _ in reward_loras[:2]]
    files = [loras.write_kohya(lora, lora_folder) for lora in scaled]
    merged = [
        replace(lora, alpha=lora.alpha * strength).merge_into(networks.sd15().model)
        for lora, strength in zip(scaled, strengths, strict=True)
    ]
    expected = graph.plain(blended_reference(base, merged, (0.6, 0.4)))
    blend = weigh([(file, strength, 0.3) for file, strength in zip(files, strengths, strict=True)], weights="0.6, 0.4")
    assert_equal(graph.blended(base, blend), expected)
    if min(strengths) < 0:
        assert_differ(graph.blended(base, graph.blend(files, "0.6, 0.4")), expected)


def test_model_strength_0_is_the_base_model(graph, base, weigh, files, plain):
    assert_equal(graph.blended(base, weigh([(files[0], 0.0, 1.0)])), plain)


def test_a_model_strength_is_on_the_node_and_in_the_load_report(graph, base, nodes, files):
    stack = [(files[0], 0.8, 1.0), (files[1], 1.0, 1.0)]
    output = nodes["BlendWeights"].execute({}, "", normalise=True, lora_stack=stack)
    line = "everything: its scale times 0.8 (model strength in lora_stack)"
    assert line in str(output.ui) and "attentive: its scale" not in str(output.ui)
    applied = host.submodule("nodes.host.apply").apply_blend(
        base, output.result[0], host.submodule("blend_core.estimators").exact, "auto", 0
    )
    assert "times 0.8 (model strength in lora_stack)" in applied.report


def test_one_file_twice_at_two_strengths_is_two_bases(graph, base, weigh, files, merged):
    blend = weigh([(files[0], 1.0, 1.0), (files[0], 0.0, 1.0)], weights="0.3, 0.7")
    assert blend.names == ("everything", "everything (2)")
    assert_equal(graph.blended(base, blend), graph.plain(blended_reference(base, merged[:2], (0.7, 0.3))))


def test_labels_stay_apart_where_a_file_is_called_like_a_number(weigh, loader, files):
    slots = [replace(loader(files[0]), label=label) for label in ("calm", "calm (2)", "calm")]
    assert weigh([], slots).names == ("calm", "calm (2)", "calm (3)")


def test_a_dora_takes_no_strength_but_1(weigh, lora_folder, error):
    lora = {"up": torch.ones(4, 2), "down": torch.ones(2, 4)}
    tensors = {f"diffusion_model.a.lora_{name}.weight": tensor for name, tensor in lora.items()}
    file = loras.save(tensors | {"diffusion_model.a.dora_scale": torch.ones(4, 1)}, lora_folder, "dora.safetensors")
    assert weigh([(file, 1.0, 1.0)]).names == ("dora",)
    with pytest.raises(error, match="expected 1: it is a DoRA"):
        weigh([(file, 0.5, 1.0)])


def test_two_blends_of_one_stack_are_blends_of_the_same_bases(weigh, files):
    stack = [(file, 1.0, 1.0) for file in files[:2]]
    first, second = weigh(stack, weights="1, 0"), weigh(stack, weights="0, 1")
    wide = host.submodule("nodes.types").joined(first, second)
    assert [blend.schedule.blends[0].preference for blend in wide] == [(1.0, 0.0), (0.0, 1.0)]


def test_a_lora_that_stands_twice_in_a_blend_keeps_both_its_weights_beside_another_blend(weigh, files):
    twice = weigh([(files[0], 1.0, 1.0)] * 2 + [(files[1], 1.0, 1.0)], weights="0.1, 0.2, 0.7")
    wide, _ = host.submodule("nodes.types").joined(twice, weigh([(files[2], 1.0, 1.0)]))
    assert wide.schedule.blends[0].preference == pytest.approx((0.3, 0.7, 0.0))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (("gone.safetensors", 1.0, 1.0), "gone.safetensors is not in models/loras"),
        (("folder\\gone.safetensors", 1.0, 1.0), "gone.safetensors is not in models/loras"),
        (("calm.safetensors", 1.0), "expected .file name, model strength, clip strength."),
        (("calm.safetensors", "much", 1.0), "expected .file name, model strength, clip strength."),
        ((3, 1.0, 1.0), "expected .file name, model strength, clip strength."),
    ],
)
def test_a_stack_that_cannot_be_blended_is_refused(weigh, entry, message, error):
    with pytest.raises(error, match=message):
        weigh([entry])


def test_without_slots_and_stack_one_is_asked_to_connect(weigh, error):
    for stack in (None, [], [("None", 1.0, 1.0)]):
        with pytest.raises(error, match="Connect"):
            weigh(stack)


@pytest.mark.parametrize("strength", [-1.5, 0.4, 2.0])
@pytest.mark.parametrize("kind", [kinds.lora, kinds.loha, kinds.lokr_whole, kinds.difference])
def test_a_model_strength_is_that_of_comfyuis_own_loader(graph, base, weigh, lora_folder, kind, strength):
    layers = list(loras.three_loras(base.model)[1].factors)[:6]
    names = {layer.name: f"diffusion_model.{layer.module}" for layer in layers}
    tensors = kinds.written(kind, layers, names.get, seed=5)
    (*_, biased) = (layer for layer in layers if layer.name.endswith("to_out.0"))
    tensors[f"{names[biased.name]}.diff_b"] = torch.linspace(-1, 1, biased.shape[0])
    file = loras.save(tensors, lora_folder, f"of_a_stack_{kind.__name__}.safetensors")
    expected = LoraLoaderModelOnly().load_lora_model_only(base, file, strength)[0]
    assert_equal(graph.blended(base, weigh([(file, strength, 1.0)])), graph.plain(expected))
