"""`diffusion-blend distil` on a tiny model in a folder: a file for each setting of the weights, and its distances."""

import json

import pytest
from diffusion_blend.blend_core import read_adapter
from diffusion_blend.lab.cli import main
from diffusion_blend.pipelines import load_base, load_factors

from ..pipelines.worlds import write_studio

NAMES = ("first", "second")


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """A folder with base/, first.safetensors, second.safetensors and prompts.txt."""
    folder = tmp_path_factory.mktemp("studio")
    write_studio(folder, NAMES, size=0.05)
    (folder / "prompts.txt").write_text("a red circle\na blue square\na red square\na blue circle\n")
    return folder


def distil(studio, out, *more):
    """Run the command and return its code. 4 epochs of 2 images in 4 steps."""
    rewards = [f"--reward={name}={studio / name}.safetensors" for name in NAMES]
    settings = {
        "base.path": studio / "base", "prompts.file": studio / "prompts.txt", "output.folder": out, "epochs": 4,
        "prompts_per_epoch": 2, "sampling.steps": 4, "sampling.cfg": 2.0, "optimisation.images_per_pass": 2,
        "distil.steps": 2, "output.validation_images": 2, "output.validate_every": 2, "optimisation.precision": "no",
        "optimisation.warm_up": 0,
    }  # fmt: skip
    options = [f"--set={key}={value}" for key, value in settings.items()]
    return main(["distil", "sd15", *rewards, *options, *more])


def test_every_setting_of_the_weights_is_a_file_that_says_so_and_is_measured(studio, tmp_path, capsys):
    assert distil(studio, tmp_path, "--rank=4", "--weights=3, 1", "--weights=0.5, 0.5", "--alignment=1.5") == 0
    said = capsys.readouterr().out
    for label, weights in (("first3_second1", (0.75, 0.25)), ("first0.5_second0.5", (0.5, 0.5))):
        file = tmp_path / label / f"distilled_{label}.safetensors"
        metadata = read_adapter(file).metadata
        assert json.loads(metadata["diffusion_blend.weights"]) == pytest.approx(weights)
        parts = json.loads(metadata["diffusion_blend.parts"])
        assert [part["coefficient"] for part in parts] == pytest.approx([1.5 * weight for weight in weights])
        _, (report,) = load_factors(load_base(str(studio / "base")), [file])
        assert report.matched == report.in_file > 0
        rows = json.loads(file.with_suffix(".distances.json").read_text())
        assert [row["file"] for row in rows] == ["export, all ranks", "distilled, rank 4"]  # ranks 2 + 2 fit into 4
        assert all(row["distance"][steps] > 0 for row in rows for steps in ("20", "50"))
        assert str(file) in said


def test_a_lower_rank_is_measured_next_to_the_export_of_that_rank(studio, tmp_path):
    assert distil(studio, tmp_path, "--rank=1") == 0
    rows = json.loads((tmp_path / "distilled.distances.json").read_text())
    assert [row["file"] for row in rows] == ["export, all ranks", "export, rank 1", "distilled, rank 1"]
    assert all(rows[1]["distance"][steps] > rows[0]["distance"][steps] for steps in ("20", "50"))


def test_without_a_reward_it_says_what_to_give(studio, tmp_path, capsys):
    assert main(["distil", "sd15", f"--set=base.path={studio / 'base'}", f"--set=output.folder={tmp_path}"]) == 2
    assert "Give --reward NAME=PATH" in capsys.readouterr().err


def test_help_explains_the_settings_of_a_distillation(capsys):
    assert main(["distil", "--help"]) == 0
    said = capsys.readouterr().out
    assert "distil.steps" in said and "--weights" in said and "distil: distil.loras, and no reward." in said
