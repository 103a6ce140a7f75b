"""Load Reward LoRA and the published LoRAs that it recognises."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from . import host, loras

HOME = "SD3.5M-FlowGRPO-GenEval"  # the folder that `diffusion-blend fetch flow-grpo-geneval` makes


@pytest.fixture
def published(reward_loras, lora_folder):
    """The loader's name of a LoRA that lies where the published one would."""
    source = loras.write_peft(reward_loras[1][0], lora_folder)
    shutil.copytree((lora_folder / source).parent, lora_folder / HOME, dirs_exist_ok=True)
    yield f"{HOME}/adapter_model.safetensors"
    shutil.rmtree(lora_folder / HOME)


@pytest.fixture
def load(nodes):
    """load(file, label, kl_weight): the LoRA, and the lines that the node shows."""

    def run(file, label="", kl_weight=0.0):
        output = nodes["LoadRewardLoRA"].execute(lora_name=file, label=label, kl_weight=kl_weight, scale=0.0)
        return output.result[0], output.ui["text"][0].splitlines()

    return run


@pytest.fixture
def entry():
    """What the catalogue says of it."""
    return host.submodule("blend_core.adapters.catalogue").catalogue()["flow-grpo-geneval"]


def recognition(lines):
    (line,) = (line for line in lines if line.startswith("in the catalogue"))
    return line


def test_label_and_kl_weight_that_nobody_typed_come_from_the_catalogue(load, published, entry):
    lora, lines = load(published)
    assert (lora.label, lora.kl_weight) == (entry.label, entry.kl_weight) == ("GenEval", 0.04)
    assert lines[0] == "GenEval" and lines[-1] == "KL weight: 0.04"
    assert recognition(lines).startswith("in the catalogue: flow-grpo-geneval (SD3.5 medium, ")
    assert recognition(lines).endswith("by its name; label and KL weight from there")


def test_what_is_typed_counts(load, published):
    lora, lines = load(published, label="objects", kl_weight=0.1)
    assert (lora.label, lora.kl_weight) == ("objects", 0.1)
    assert recognition(lines).endswith("by its name")
    assert recognition(load(published, label="objects")[1]).endswith("by its name; KL weight from there")


def test_what_the_file_states_counts_more_than_the_catalogue(load, published, lora_folder):
    path = lora_folder / published
    save_file(load_file(path), path, {"diffusion_blend.kl_weight": "0.5"})
    lora, lines = load(published)
    assert (lora.label, lora.kl_weight) == ("GenEval", 0.5)
    assert recognition(lines).endswith("by its name; label from there")


def test_a_lora_trained_without_a_kl_term_gets_no_kl_weight(load, lora_folder, files):
    place = lora_folder / "Wan2.1-Fun-1.3B-InP-MPS.safetensors"
    shutil.copy(lora_folder / files[0], place)
    lora, lines = load(place.name)
    assert (lora.label, lora.kl_weight, lines[-1]) == ("MPS", None, "KL weight: not stated")
    assert "trained without a KL term" in recognition(lines) and recognition(lines).endswith("label from there")


def test_a_file_that_is_not_in_it_keeps_its_name(load, files):
    lora, lines = load(files[0])
    assert lora.recognition is None and lora.label == lora.adapter.label
    assert not [line for line in lines if "catalogue" in line]


def test_rows_of_a_stack_are_recognised_too(nodes, published):
    blend = nodes["BlendWeights"].execute({}, "", True, 0.0, [(published, 1.0, 1.0)]).result[0]
    assert blend.names == ("GenEval",)
