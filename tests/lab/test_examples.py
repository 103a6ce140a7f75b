"""examples/: the script and the notebook run as they stand, on the toy studio, and name files that fetch brings."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from diffusion_blend.blend_core.adapters.catalogue import catalogue
from diffusion_blend.lab.downloads import RemoteFile, place_of
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """What the script leaves: its names, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("script")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return runpy.run_path(str(EXAMPLES / "first_blend.py")), folder


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """What the notebook's cells leave, run one after another in one namespace."""
    cells = json.loads((EXAMPLES / "first_blend.ipynb").read_text(encoding="utf-8"))["cells"]
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("notebook"))
        for i, cell in enumerate(cells):
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), f"cell {i}", "exec"), names)  # noqa: S102 - the file under test
    return names


def test_the_script_writes_three_different_images_side_by_side(script):
    names, folder = script
    size = 32 * 3, 32
    assert Image.open(folder / "first_blend.png").size == size
    first, between, second = names["images"]
    assert not torch.equal(first, second) and not torch.equal(first, between)
    assert len((EXAMPLES / "first_blend.py").read_text(encoding="utf-8").splitlines()) <= 45


def test_the_notebook_makes_the_scripts_images_and_turns_the_second_dial(script, notebook):
    assert notebook["MODELS"] == script[0]["MODELS"]
    assert all(map(torch.equal, notebook["images"], script[0]["images"]))
    base, blended, beyond = notebook["aligned"]
    assert torch.equal(blended, notebook["images"][1])
    assert (base - blended).abs().sum() < (base - beyond).abs().sum()
    assert not torch.equal(*notebook["stacked"])


def test_the_other_models_name_the_files_that_fetch_brings(notebook):
    assert set(notebook["FETCH"]) == set(notebook["MODELS"])
    for model, fetched in notebook["FETCH"].items():
        files = [(catalogue()[name], RemoteFile(path)) for name in fetched for path in catalogue()[name].files]
        places = {place_of(entry, file, Path("loras")).as_posix() for entry, file in files}
        assert places == ({*notebook["MODELS"][model][1].values()} if fetched else set())


def test_the_notebook_is_shipped_without_outputs():
    cells = json.loads((EXAMPLES / "first_blend.ipynb").read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
