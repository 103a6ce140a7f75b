"""Every name that ComfyUI and diffusers have for a weight is found, as the place that they mean."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import comfy.lora
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from . import host
from .every_family import EVERY
from .test_newer_families import present

NAMED = tuple(family for family in EVERY if family.name != "MiniMax Music 3")  # too large for a file per test


def index_of(model):
    """The pack's index of a model."""
    return host.submodule("nodes.host.networks.targets").target_index(model.model)


def drawn(model):
    """A random number for every one of the network's, by ComfyUI's names."""
    generator = torch.Generator().manual_seed(5)
    state = model.model.diffusion_model.state_dict()
    return {key: torch.randn(value.shape, generator=generator) for key, value in state.items()}


def differences(state, prefix):
    """A file of differences under these names, as extraction tools write them."""
    file = {}
    for key, value in state.items():
        module, _, parameter = key.rpartition(".")
        end = {"weight": f"{module}.diff", "bias": f"{module}.diff_b"}.get(parameter, f"{key}.diff")
        file[prefix + end] = value
    return file


def resolved(file, path, index):
    """(changes by target, report) of a file of differences."""
    adapters = host.submodule("blend_core.adapters")
    save_file({key: value.contiguous() for key, value in file.items()}, path)
    return adapters.resolve(adapters.read_adapter(path), index)


def tensors_of(changes):
    """(key by ComfyUI's name, first row, numbers) of everything that is changed."""
    for target, change in changes.items():
        module = target.module.removeprefix("diffusion_model").strip(".")
        first = target.rows[0] if target.rows else 0
        if change.delta is not None:
            shape = (target.height, *target.shape[1:])
            yield f"{module}.{target.parameter}".strip("."), first, change.delta.built(shape, change.delta.tensors)
        if change.bias is not None:
            yield f"{module}.bias", first, change.bias


@pytest.mark.parametrize("family", present(EVERY))
def test_every_alias_of_comfyuis_own_map_is_the_same_place(family):
    model = family.load()
    index, state = index_of(model), model.model.state_dict()
    aliases = comfy.lora.model_lora_keys_unet(model.model, {})
    places = {alias: (place, None) if isinstance(place, str) else place for alias, place in aliases.items()}
    here = {alias: place for alias, place in places.items() if place[0] in state}  # its maps are of larger networks
    assert here
    for alias, (key, area, *function) in here.items():
        targets = index.find(alias)
        assert len(targets) == 1, alias
        (target,) = targets
        assert f"{target.module}.{target.parameter}" == key, alias
        assert target.rows == (area and (area[1], area[2])), alias
        assert target.swap_halves is bool(function), alias


@pytest.mark.parametrize("family", present(NAMED))
def test_a_difference_of_every_tensor_is_what_comfyui_would_add(family, tmp_path):
    """By ComfyUI's own names: weights, biases, norms, embeddings and bare parameters."""
    model = family.load()
    file = differences(drawn(model), "diffusion_model.")
    patches = comfy.lora.load_lora(dict(file), comfy.lora.model_lora_keys_unet(model.model, {}), log_missing=False)
    expected = {key: value[1][0] for key, value in patches.items() if isinstance(key, str)}
    changes, report = resolved(file, tmp_path / "file.safetensors", index_of(model))
    assert report.matched == report.in_file and not report.left_out
    came = {f"diffusion_model.{key}": numbers for key, _, numbers in tensors_of(changes)}
    assert expected.keys() <= came.keys()
    for key, value in expected.items():
        assert torch.equal(came[key].reshape(value.shape), value), key


@pytest.fixture(scope="module")
def diffusers_side(tmp_path_factory):
    """A folder with the networks' tensors by ComfyUI's names and, beside them, by diffusers'."""
    named = os.environ.get("DIFFUSERS_PYTHON")
    python = Path(named) if named else host.REPOSITORY / ".venv" / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"no Python with diffusers at {python}: run make test, or set DIFFUSERS_PYTHON")
    folder = tmp_path_factory.mktemp("names")
    for family in NAMED:
        if not family.missing:
            save_file(drawn(family.load()), folder / f"{family.name}.safetensors")
    script = Path(__file__).with_name("diffusers_names.py")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    clean |= {"PYTHONPATH": path} if (path := os.environ.get("DIFFUSERS_PYTHONPATH")) else {}
    subprocess.run([str(python), str(script), str(folder)], env=clean, check=True, timeout=600)
    yield folder
    shutil.rmtree(folder)


UNUSED = {  # patterns of names that ComfyUI's networks have not
    "LTX-2": r"(video|audio)_text_proj_in\..*",  # with the text encoder there
    "Stable Audio": r".*norm\d\.bias|time_proj\..*",  # zeros that it leaves out; and a row that is a column there
}


@pytest.mark.parametrize("family", present(NAMED))
def test_every_name_of_diffusers_is_found(family, diffusers_side, tmp_path):
    components = sorted((diffusers_side / family.name).glob("*.safetensors"))
    if not components:
        pytest.skip(f"this diffusers has no names for {family.name}")
    index = index_of(family.load())
    for path in components:
        unused = re.compile(UNUSED.get(family.name, "(?!)"))
        state = {key: value for key, value in load_file(path).items() if not unused.fullmatch(key)}
        changes, report = resolved(differences(state, f"{path.stem}."), tmp_path / "file.safetensors", index)
        assert report.matched == report.in_file and not report.left_out
        with safe_open(path, "pt") as file:
            converted = file.metadata()["how"] == "converted"
        tensors = load_file(diffusers_side / f"{family.name}.safetensors") if converted else {}
        for key, first, numbers in tensors_of(changes) if converted else ():
            expected = tensors[key][first : first + len(numbers)].reshape(numbers.shape)
            assert torch.equal(numbers, expected), key


def test_the_networks_of_diffusers_are_compared(diffusers_side):
    """Families without names of diffusers' are those that it has no network of, or that have the names of another."""
    without = {f.name for f in NAMED if not f.missing and not (diffusers_side / f.name).is_dir()}
    assert without <= WITHOUT_NAMES


WITHOUT_NAMES = {
    # the tables of SD 1.5 and of Wan are those of the families beside them; the network here has no counterpart
    "SD 1.5", "SDXL refiner", "Wan 2.2 5B", "Wan Fun camera", "Wan S2V", "Wan HuMo", "Wan Animate", "SCAIL", "SCAIL 2",
    "WanDancer", "Wan causal", "Kandinsky 5 image", "Cosmos Predict 2 video",
    # not in diffusers
    "Boogu", "Omnigen 2", "Lens", "Mage-Flow", "Chroma Radiance", "Z-Image pixel", "PixelDiT", "PiD", "HiDream O1",
    "SeedVR2", "ACE-Step",
    # in diffusers under names that are not read: no trainer writes them
    "SVD", "Stable Cascade C", "Stable Cascade B", "Stable Audio 3",
}  # fmt: skip
