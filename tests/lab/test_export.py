"""`diffusion-blend export`: a file whose picture is the merged evaluation's, in our reader and in diffusers' own."""

import json

import pytest
import torch
from diffusion_blend.blend_core import Blend, BlendError, read_adapter
from diffusion_blend.lab.cli import main
from diffusion_blend.lab.generation.export import _spelled
from diffusion_blend.pipelines import BlendEvaluation, Sampling, generate, load_base, load_factors
from safetensors import safe_open

from ..pipelines.worlds import write_studio

NAMES, WEIGHTS = ("first", "second"), (0.6, 0.4)
SAMPLING = Sampling(steps=4, eta=0.0, cfg=2.0)


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """A folder with base/, first.safetensors and second.safetensors."""
    folder = tmp_path_factory.mktemp("studio")
    write_studio(folder, NAMES, size=0.3)
    return folder


def export(studio, out, *more):
    """Run the command; the file it wrote."""
    rewards = [f"--reward={name}={studio / name}.safetensors" for name in NAMES]
    assert main(["export", str(out), f"--base={studio / 'base'}", *rewards, "--weights=0.6, 0.4", *more]) == 0
    return out


def picture(pipe, blend, factors, evaluation="merged"):
    made = BlendEvaluation.of(evaluation, blend, factors)
    return torch.stack([torch.as_tensor(image) for image in generate(pipe, made, ["a red circle"], [5], SAMPLING)])


@pytest.mark.parametrize("alignment", [1.0, 1.5, -0.5])
def test_the_file_alone_is_the_merged_blend(studio, tmp_path, alignment):
    file = export(studio, tmp_path / "blend.safetensors", f"--alignment={alignment}")
    pipe = load_base(str(studio / "base"))
    factors, _ = load_factors(pipe, [studio / f"{name}.safetensors" for name in NAMES])
    one, _ = load_factors(pipe, [file])
    expected = picture(pipe, Blend(NAMES, WEIGHTS, alignment), factors)
    torch.testing.assert_close(picture(pipe, Blend(("blend",), (1.0,)), one), expected, atol=1e-4, rtol=0)
    plain = picture(pipe, None, [], "base")
    assert (expected - plain).abs().max() > 1e-2


def test_diffusers_own_loader_reads_it_to_the_same_picture(studio, tmp_path):
    file = export(studio, tmp_path / "blend.safetensors")
    pipe = load_base(str(studio / "base"))
    factors, _ = load_factors(pipe, [studio / f"{name}.safetensors" for name in NAMES])
    expected = picture(pipe, Blend(NAMES, WEIGHTS), factors)
    pipe.load_lora_weights(str(file))
    torch.testing.assert_close(picture(pipe, None, [], "base"), expected, atol=1e-4, rtol=0)


def test_the_header_names_files_coefficients_and_digests_and_no_folder(studio, tmp_path):
    file = export(studio, tmp_path / "blend.safetensors")
    with safe_open(file, "pt") as opened:
        parts = json.loads(opened.metadata()["diffusion_blend.parts"])
    assert [part["file"] for part in parts] == [f"{name}.safetensors" for name in NAMES]
    assert [part["coefficient"] for part in parts] == pytest.approx(WEIGHTS)
    assert all(len(part["sha256"]) == 64 for part in parts)


@pytest.mark.parametrize("weights", ["3, 2", "60% 40%"])
def test_weights_are_shares_as_generate_takes_them(studio, tmp_path, weights):
    file = export(studio, tmp_path / "blend.safetensors", f"--weights={weights}")
    with safe_open(file, "pt") as opened:
        parts = json.loads(opened.metadata()["diffusion_blend.parts"])
    assert [part["coefficient"] for part in parts] == pytest.approx(WEIGHTS)


def test_differences_keep_their_roles_and_transformers_refuse_them():
    tensors = {"a.b.diff": torch.ones(2, 2), "a.b.diff_b": torch.ones(2)}
    assert set(_spelled(tensors, is_unet=True)) == {"lora_unet_a_b.diff", "lora_unet_a_b.diff_b"}
    with pytest.raises(BlendError, match="whole difference came"):
        _spelled(tensors, is_unet=False)
    pair = {"a.lora_down.weight": torch.ones(1, 2), "a.lora_up.weight": torch.ones(2, 1), "a.alpha": torch.ones(())}
    assert set(_spelled(pair, is_unet=False)) == {"transformer.a.lora_A.weight", "transformer.a.lora_B.weight"}


def test_a_lower_rank_is_kept_and_its_loss_stated(studio, tmp_path, capsys):
    file = export(studio, tmp_path / "small.safetensors", "--rank=1")
    assert set(read_adapter(file).ranks) == {1}
    assert "% of the change is lost" in capsys.readouterr().out


def test_without_a_reward_it_says_what_to_give(studio, tmp_path, capsys):
    assert main(["export", str(tmp_path / "x.safetensors"), f"--base={studio / 'base'}"]) == 2
    assert "Give --reward NAME=PATH" in capsys.readouterr().err
