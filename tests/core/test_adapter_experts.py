"""Files for one of Wan 2.2's two networks, told by name, folder and header."""

import pytest
from diffusion_blend.blend_core import BlendError
from diffusion_blend.blend_core.adapters import mixed_experts, partner, read_adapter, resolve

from .lora_worlds import WAN, pair, spelled, tensors_for, write

NAMES = {
    "Wan2.2-Fun-A14B-InP-high-noise-HPS2.1.safetensors": "high noise",
    "Wan2.2-Fun-A14B-InP-low-noise-MPS.safetensors": "low noise",
    "portrait_HighNoise.safetensors": "high noise",
    "wan22_dance_LOW.safetensors": "low noise",
    "run_high_noise/adapter_model.safetensors": "high noise",
    "run/transformer_2/adapter_model.safetensors": "low noise",
    "highway.safetensors": "",
    "slow_motion.safetensors": "",
    "wan_unified.safetensors": "",
}


def read(folder, name, metadata=None):
    return read_adapter(write(folder / name, spelled(tensors_for(WAN.plain), "13 ComfyUI native"), metadata))


@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_told_by_the_name(tmp_path, name):
    _, report = resolve(read(tmp_path, name), WAN.index)
    assert read(tmp_path, name).expert == NAMES[name]
    assert (f"network of {NAMES[name]}" in str(report)) is bool(NAMES[name])


def test_the_first_of_two_folders_is_for_high_noise(tmp_path):
    for name in ("transformer", "transformer_2"):
        read(tmp_path, f"run/{name}/adapter_model.safetensors")
    assert read(tmp_path, "run/transformer/adapter_model.safetensors").expert == "high noise"
    assert read(tmp_path, "alone/transformer/adapter_model.safetensors").expert == ""


def test_the_network_is_told_by_the_header(tmp_path):
    adapter = read(tmp_path, "hps.safetensors", {"ss_output_name": "wan22_14b_t2v_high_noise_hps"})
    assert adapter.expert == "high noise"
    assert "its header (ss_output_name)" in adapter.notes[0]


def test_a_word_in_the_name_of_another_family_is_only_a_word(tmp_path):
    assert read_adapter(write(tmp_path / "low_key.safetensors", pair())).expert == ""


def test_files_for_two_networks_in_one_blend_are_pointed_out(tmp_path):
    high, low, none = (read(tmp_path, f"{name}.safetensors") for name in ("a_high_noise", "b_low_noise", "c"))
    assert "a_high_noise for high noise; b_low_noise for low noise" in mixed_experts([high, low, none])
    assert mixed_experts([high, none, high]) == ""


PAIRS = {
    "Wan2.2-Fun-A14B-InP-high-noise-MPS.safetensors": "Wan2.2-Fun-A14B-InP-low-noise-MPS.safetensors",
    "portrait_HighNoise.safetensors": "portrait_LowNoise.safetensors",
    "wan22_dance_HIGH_v2.safetensors": "wan22_dance_LOW_v2.safetensors",
    "wan/run_high_noise/adapter_model.safetensors": "wan/run_low_noise/adapter_model.safetensors",
    "wan/high/slow_flow.safetensors": "wan/low/slow_flow.safetensors",
    "run/transformer/adapter_model.safetensors": "run/transformer_2/adapter_model.safetensors",
    "high_quality_high_noise.safetensors": "high_quality_low_noise.safetensors",
    "hps_highnoise.safetensors": "hps-low-noise.safetensors",
    "windows\\mps_high.safetensors": "windows\\mps_low.safetensors",
    "mps.safetensors": "mps_low_noise.safetensors",
}
OTHERS = ["low.safetensors", "other_high_noise.safetensors", "other_low_noise.safetensors", "slow.safetensors"]


@pytest.mark.parametrize("high", PAIRS)
def test_the_partner_of_a_file_has_its_name_but_for_the_word(high):
    low = PAIRS[high]
    names = [*OTHERS, high, low]
    assert partner(high, "low noise", names) == low
    assert partner(low, "low noise", names) == low
    assert partner(high, "as chosen", names) == high
    if high != "mps.safetensors":  # which says of neither network that it is for it
        assert partner(low, "high noise", names) == high


def test_the_nearest_of_two_names_is_the_partner():
    names = ["a_high_noise.safetensors", "a_low_noise.safetensors", "a-low.safetensors"]
    assert partner(names[0], "low noise", names) == names[1]


@pytest.mark.parametrize(
    ("name", "expert", "words"),
    [
        ("a_HIGH.safetensors", "low noise", ["no partner for low noise", "expected a_LOW.safetensors", "press R"]),
        ("a_LowNoise.safetensors", "high noise", ["expected a_HighNoise.safetensors", "expert to as chosen"]),
        ("b.safetensors", "low noise", ["b.safetensors has no partner", "a file of that name with low_noise in it"]),
        ("c-high.safetensors", "low noise", ["2 partners for low noise (c_low.safetensors, c.low.safetensors)"]),
        ("b.safetensors", "middle", ["expert is 'middle', expected one of as chosen, high noise, low noise"]),
    ],
)
def test_a_file_without_one_partner_is_refused_with_what_was_looked_for(name, expert, words):
    with pytest.raises(BlendError) as caught:
        partner(name, expert, [*OTHERS, name, "c_low.safetensors", "c.low.safetensors"])
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
