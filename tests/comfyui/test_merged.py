"""The evaluation merged, and the file of it: what ComfyUI's own stacked LoRAs give at these strengths."""

import json
import shutil
from pathlib import Path

import folder_paths
import pytest
from safetensors import safe_open

from nodes import LoraLoaderModelOnly

from . import loras
from .every_family import EVERY, empty, flat, present
from .families import named
from .graphs import Graph, latent
from .host import submodule
from .kind_cases import ALIGNMENT, FAMILIES, KINDS
from .reference import ROUNDING, assert_differ, assert_equal

STRENGTHS = (0.6 * ALIGNMENT, 0.4 * ALIGNMENT)
SUMS = [kind for kind in (*KINDS, "norms_and_biases") if not kind.startswith("dora")]
"""The kinds of which two add up; what DoRA adds depends on what was added before it."""


def stacked(model, files, strengths):
    """Load LoRA, one after the other."""
    for file, strength in zip(files, strengths, strict=True):
        (model,) = LoraLoaderModelOnly().load_lora_model_only(model, file, strength)
    return model


def saved(case, blend, lora_folder, name, rank=0):
    """Save Blend as LoRA; (the name under which ComfyUI's loaders find the file, what the node says)."""
    node = case.graph.nodes["SaveBlendAsLoRA"]
    text = node.execute(model=case.model, blend=blend, filename_prefix="test_merged/blend", rank=rank).ui["text"][0]
    written = text.splitlines()[0].removeprefix("written: output/").partition(",")[0]
    shutil.move(Path(folder_paths.get_output_directory()) / written, lora_folder / name)
    return name, text


@pytest.mark.parametrize("kind", SUMS)
@pytest.mark.parametrize("name", FAMILIES)
def test_merged_and_its_file_are_stacked_loras(kind_case, name, kind, lora_folder, caplog):
    this = kind_case(name, kind)
    expected = this.graph.plain(stacked(this.model, this.files, STRENGTHS), **this.inputs)
    assert_differ(expected, this.graph.plain(this.model, **this.inputs))
    applied = this.graph.applied(this.model, this.blend(ALIGNMENT), "batched", "merged")
    assert_equal(this.graph.plain(applied, **this.inputs), expected, ROUNDING)
    file, _ = saved(this, this.blend(ALIGNMENT), lora_folder, f"{this.files[0]}_merged.safetensors")
    assert_equal(this.graph.plain(stacked(this.model, [file], [1.0]), **this.inputs), expected, ROUNDING)
    again = this.graph.applied(this.model, this.graph.blend([file]), "batched", "exact")
    assert_equal(this.graph.plain(again, **this.inputs), expected, ROUNDING)
    assert "not loaded" not in caplog.text


def test_the_header_names_the_parts_and_no_folder(kind_case, lora_folder):
    this = kind_case("SD 1.5", "lokr")
    file, _ = saved(this, this.blend(ALIGNMENT), lora_folder, "with_header.safetensors")
    with safe_open(lora_folder / file, "pt") as opened:
        metadata = opened.metadata()
    parts = json.loads(metadata["diffusion_blend.parts"])
    assert [part["file"] for part in parts] == this.files
    assert [part["coefficient"] for part in parts] == pytest.approx(STRENGTHS)
    assert all(len(part["sha256"]) == 64 for part in parts)
    assert str(lora_folder) not in json.dumps(metadata)


def test_a_lower_rank_says_what_it_lost(nodes, lora_folder):
    family = named("SD 1.5")
    model, graph = family.load(), Graph(nodes, family.prompt(51), family.prompt(52))
    made = [loras.random_lora(f"rank_{i}", family.layers(model), rank=4, alpha=4.0, seed=i) for i in range(2)]
    files = [loras.write_kohya(lora, lora_folder) for lora in made]
    this = type("Pairs", (), {"model": model, "graph": graph})
    inputs = {"latent_image": latent(1, family.latent), "cfg": 3.0, "steps": 2}
    expected = graph.plain(stacked(model, files, (0.5, 0.5)), **inputs)
    errors = []
    for rank in (1, 4, 8):
        file, text = saved(this, graph.blend(files), lora_folder, f"cut_to_{rank}.safetensors", rank)
        assert ("0.00% of the change is lost" in text.splitlines()[0]) == (rank == 8)
        errors.append(float((graph.plain(stacked(model, [file], [1.0]), **inputs) - expected).norm()))
    assert errors[0] > errors[1] > 10 * errors[2]


def test_what_no_file_can_hold_is_refused(kind_case, nodes):
    this = kind_case("SD 1.5", "lokr")
    error, save = submodule("blend_core").BlendError, nodes["SaveBlendAsLoRA"].execute
    both = {"blend_0": this.graph.blend(this.files, "1, 0"), "blend_1": this.graph.blend(this.files, "0, 1")}
    (schedule,) = nodes["BlendSchedule"].execute(blends=both, curve="linear").result
    with pytest.raises(error, match="changes over the run"):
        save(model=this.model, blend=schedule, filename_prefix="x")
    whole = this.graph.blend([this.graph.whole(named("SD 1.5").load()), this.files[0]])
    with pytest.raises(error, match="whole is a whole model"):
        save(model=this.model, blend=whole, filename_prefix="x")
    with pytest.raises(error, match="DoRA came"):
        save(model=this.model, blend=kind_case("SD 1.5", "dora_of_columns").blend(), filename_prefix="x")


@pytest.mark.parametrize("family", present([family for family in EVERY if family.before]))
def test_merged_prepares_the_prompt_under_all_loras_at_once(family, nodes, lora_folder):
    model, graph = family.load(), Graph(nodes, family.prompt(51), family.prompt(52))
    layers = [layer for layer in family.layers(model) if layer.module.split(".")[0] in family.before]
    made = [loras.random_lora(f"before_{family.kind}_{i}", layers, rank=2, alpha=2.0, seed=i) for i in range(2)]
    files = [loras.write_native(lora, lora_folder) for lora in made]
    inputs = {"latent_image": empty(family, 1), "cfg": 3.0, "steps": 2}
    expected = flat(graph.plain(stacked(model, files, STRENGTHS), **inputs))
    assert_differ(expected, flat(graph.plain(model, **inputs)))
    blend = graph.blend(files, "0.6, 0.4", alignment=ALIGNMENT)
    merged = graph.plain(graph.applied(model, blend, "batched", "merged"), **inputs)
    assert_equal(flat(merged), expected, ROUNDING * family.rounding)
