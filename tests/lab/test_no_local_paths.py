"""No file that a command writes says where things lie on this machine; real outputs of every kind, on tiny models."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from diffusers import DDIMScheduler
from diffusion_blend.lab.cli import main
from diffusion_blend.trainers.files.lora import training_command
from diffusion_blend.trainers.places import HIDDEN, reopened, reward_label, stated, stated_reward, without_folders
from PIL import Image
from safetensors import safe_open

from ..lora_files import random_lora, write_lora
from ..pipelines.worlds import tiny_pipeline

NEAR = "home/projects/me"  # of the cases: the home folder holds the models and the outputs
FAR = "home/projects/me/models/private"  # the way from the outputs to the models passes the home folder by
PROTOCOL = """
methods = ["base", "mpa", "oracle"]
preferences = [[0.5, 0.5]]
images_per_pass = 2
models.base = "{models}/base"
models.loras = ["first={models}/first.safetensors", "second={models}/second.safetensors"]
models.oracles = ["0.5, 0.5={models}/second.safetensors"]
rewards = {{ names = ["{models}/own.py", "brightness"], folders = ["{models}/weights"] }}
prompts = {{ file = "{models}/prompts.txt", seeds = 1 }}
sampling = {{ steps = 2, eta = 1.0, cfg = 2.0 }}
"""
SETTINGS = """
algorithm = "grpo"
kl_weight = 0.01
epochs = 1
prompts_per_epoch = 2
images_per_prompt = 2
base.path = "{models}/base"
prompts = {{ file = "{models}/prompts.txt", validation_file = "{models}/prompts.txt" }}
reward = {{ sum = ["0.5*{models}/own.py:glow", "0.5*brightness"], weights = ["{models}/weights"] }}
sampling = {{ steps = 2, cfg = 2.0 }}
lora.rank = 2
optimisation.images_per_pass = 2
output = {{ validate_every = 1, validation_images = 2, trackers = ["tensorboard"] }}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with models/: base, LoRAs, prompts, a reward of the user's own, weights and settings."""
    root = tmp_path_factory.mktemp("machine") / "home" / "projects" / "me"
    models = root / "models" / "private"
    pipe = tiny_pipeline()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=False)
    pipe.save_pretrained(models / "base")
    for seed, name in enumerate(("first", "second"), start=31):
        write_lora(models / f"{name}.safetensors", random_lora(pipe.unet, seed, size=0.02))
    (models / "own.py").write_text("def glow(images):\n    return images.mean((1, 2, 3))\n")
    (models / "prompts.txt").write_text("a red circle\na blue square\n")
    (models / "weights").mkdir()
    for name, text in (("protocol", PROTOCOL), ("settings", SETTINGS)):
        (models / f"{name}.toml").write_text(text.format(models=models.as_posix()))
    return root


@pytest.fixture(scope="module", params=["near", "far"])
def outputs(request, root):
    """The case, the models' folder, and the folder with an output of every command."""
    machine = root.parents[2]
    home = machine / (NEAR if request.param == "near" else FAR)
    out = (root / "out") if request.param == "near" else machine / "shared"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("USERPROFILE", str(home))
        for command in commands(root / "models" / "private", out):
            patch.setattr("sys.argv", ["diffusion-blend", *command])
            assert main(command) == 0, command
        yield request.param, root / "models" / "private", out


def commands(models, out):
    """One of every kind that writes files."""
    loras = [f"--reward={name}={models / name}.safetensors" for name in ("first", "second")]
    sampled = [f"--base={models / 'base'}", *loras, "--steps=2", "--eta=1", "--cfg=2", "--device=cpu"]
    sampled += [f"--prompts={models / 'prompts.txt'}"]
    settings = str(models / "settings.toml")
    yield ["generate", *sampled, f"--out={out / 'images'}"]
    yield ["generate", f"--repeat={out / 'images' / 'generation.json'}", *moved(models), f"--out={out / 'again'}"]
    yield ["score", str(out / "images"), f"--reward={models}/own.py", f"--models={models}/weights", "--device=cpu"]
    probe = [f"--reward-model={models}/own.py=first", "--kl-weight=0.5", "--samples=3", "--probes=1"]
    yield ["diagnose", *sampled, *probe, f"--out={out / 'diagnosis'}"]
    yield ["evaluate", str(models / "protocol.toml"), "--device=cpu", f"--out={out / 'report'}"]
    watched = f'--set=reward.watch=["{models}/own.py"]'
    yield ["train", settings, watched, f"--set=base.path={models / 'base'}", f"--set=output.folder={out / 'run'}"]
    yield ["pairs", settings, f"--out={out / 'pairs'}", "--count=2", "--candidates=2"]
    trained = next((out / "run").glob("*.safetensors"))
    yield ["convert", str(trained), str(out / "converted.safetensors"), "--spelling=diffusers", *sampled[:1]]


def moved(models):
    """Where the models of a record lie."""
    return [f"--base={models}/base", *(f"--reward={name}={models}/{name}.safetensors" for name in ("first", "second"))]


def texts_of(file):
    """All text in a file: its bytes, what is packed in it, and its name."""
    yield str(file.name)
    yield file.read_bytes().decode("latin-1")
    if file.suffix == ".parquet":
        table = pyarrow.parquet.read_table(file)
        yield repr((table.to_pydict(), table.schema.metadata))
    elif file.suffix == ".png":
        with Image.open(file) as image:
            yield repr(image.info)
    elif file.suffix == ".pt":
        yield repr(torch.load(file, weights_only=True))
    elif file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            yield repr(opened.metadata())


def test_no_output_names_a_folder_of_this_machine(outputs, root):
    _, _, out = outputs
    files = [file for file in out.rglob("*") if file.is_file()]
    kinds = {file.name for file in files} | {file.suffix for file in files}
    assert {"generation.json", "scores.json", "scores.csv", "diagnosis.json", "evaluation.json", "report.html"} <= kinds
    assert {"scores.parquet", "summary.json", "summary.md", "log.jsonl", "state.pt", "pairs.jsonl"} <= kinds
    assert ".safetensors" in kinds and any("tfevents" in file.name for file in files)
    machine = root.parents[2]
    local = {str(place) for folder in (machine, machine.resolve(), Path.cwd()) for place in (folder, folder.as_posix())}
    local |= {"home/projects", str(Path("~").expanduser())}
    for file in files:
        for text in texts_of(file):
            assert not [place for place in local if place in text], file


def test_a_record_states_the_way_to_its_models_or_their_names(outputs):
    case, _, out = outputs
    way = "../../models/private/" if case == "near" else HIDDEN
    request = json.loads((out / "images" / "generation.json").read_text())["request"]
    assert request["base"] == f"{way}base" and request["rewards"]["first"] == f"{way}first.safetensors"
    diagnosis = json.loads((out / "diagnosis" / "diagnosis.json").read_text())
    assert diagnosis["request"]["base"] == f"{way}base" and diagnosis["probe"]["rewards"] == {"first": f"{way}own.py"}
    protocol = json.loads((out / "report" / "evaluation.json").read_text())["protocol"]
    assert protocol["models"]["oracles"] == [f"0.5, 0.5={way}second.safetensors"]
    assert protocol["rewards"]["names"] == [f"{way}own.py", "brightness"]
    log = [json.loads(line) for line in (out / "run" / "log.jsonl").read_text().splitlines()]
    assert "valid_own.py" in log[-1]
    file = next((out / "run").glob("*.safetensors"))
    assert file.stem == "0.5 own.py:glow + 0.5 brightness"
    with safe_open(file, "pt") as opened:
        command = opened.metadata()["diffusion_blend.command"]
    assert command.startswith("diffusion-blend train settings.toml") and "base.path=base" in command
    assert 'reward.watch=["own.py"]' in command and "output.folder=run" in command


def test_every_folder_is_gone_on_with_by_its_command(outputs, capsys):
    _, models, out = outputs
    kept = {file: file.stat().st_mtime_ns for file in [*out.rglob("passes-*.jsonl"), *out.rglob("0000*.png")]}
    for command in commands(models, out):
        if command[0] in ("generate", "evaluate"):
            assert main(command) == 0
        elif command[0] == "train":
            assert main([*command, "--set=epochs=2"]) == 0
            assert "going on after 1 epochs" in capsys.readouterr().out
            assert main([*command, "--set=epochs=3", f"--set=base.path={models.parent}/base"]) == 2
            assert "made with other settings (base.path was" in capsys.readouterr().err
    assert kept and all(file.stat().st_mtime_ns == time for file, time in kept.items() if "pairs" not in file.parts)


def test_a_record_repeats_wherever_its_tree_is_moved(root, tmp_path, capsys):
    models = root / "models" / "private"
    shutil.copytree(models, tmp_path / "one" / "models")
    made = ["--steps=1", "--eta=1", "--device=cpu", "--prompt=a", f"--base={tmp_path / 'one/models/base'}"]
    made += [f"--reward=first={tmp_path / 'one/models/first.safetensors'}", f"--out={tmp_path / 'one/images'}"]
    assert main(["generate", *made]) == 0
    (tmp_path / "one").rename(tmp_path / "other")
    record = tmp_path / "other" / "images" / "generation.json"
    assert main(["generate", f"--repeat={record}", f"--out={tmp_path / 'other/again'}"]) == 0
    assert (tmp_path / "other/again/generation.json").read_bytes() == record.read_bytes()
    assert (tmp_path / "other/again/00000.png").read_bytes() == (record.parent / "00000.png").read_bytes()
    (tmp_path / "other" / "models").rename(tmp_path / "elsewhere")
    repeat = ["generate", f"--repeat={record}", f"--out={tmp_path / 'third'}"]
    assert main(repeat) == 2
    assert "Give --reward first=PATH" in capsys.readouterr().err
    places = [f"--base={tmp_path}/elsewhere/base", f"--reward=first={tmp_path}/elsewhere/first.safetensors"]
    assert main([*repeat, *places, f"--reward=third={tmp_path}/elsewhere/first.safetensors"]) == 2
    assert "--reward names third, which the record has not. It has first" in capsys.readouterr().err
    assert main([*repeat, *places]) == 0
    assert (tmp_path / "third/00000.png").read_bytes() == (record.parent / "00000.png").read_bytes()


def test_a_path_is_stated_from_the_folder_of_its_file_or_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    file = tmp_path / "models" / "a.safetensors"
    file.touch()
    out = tmp_path / "out"
    assert stated(str(file), out) == "../models/a.safetensors"
    assert reopened("../models/a.safetensors", out) == str(file)
    assert stated(f"{tmp_path}/nowhere", out) == "../nowhere" and reopened("../nowhere", out) == "../nowhere"
    assert stated(file.anchor + "a/b.py", out) == HIDDEN + "b.py" == stated(HIDDEN + "b.py", out)
    assert stated_reward(f"{file.parent}/own.py:glow", out) == "../models/own.py:glow"
    monkeypatch.chdir(tmp_path)
    for name in ("models", "owner/model", "toy", "", "pickscore"):  # a bare word is a name, whatever lies beside it
        assert stated(name, out) == name
    assert stated("models/a.safetensors", out) == "../models/a.safetensors"
    monkeypatch.chdir(tmp_path / "models")
    assert stated("a.safetensors", out) == "../models/a.safetensors"
    monkeypatch.setenv("HOME", str(tmp_path / "models"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "models"))
    assert stated("~/a.safetensors", out) == HIDDEN + "a.safetensors"
    assert stated("~/a.safetensors", tmp_path / "models" / "out") == "../a.safetensors"
    assert reward_label("pickscore") == "pickscore" and reward_label("a/b.py:c") == "b.py:c"
    assert reward_label("package.module:function") == "package.module:function"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train", "train"),
        ("--set=base.path=/data/me/base", "--set=base.path=base"),
        ('reward.weights=["/data/a", "~/b/c"]', 'reward.weights=["a", "c"]'),
        ('reward.sum=["0.5*/data/own.py:glow", "0.5*brightness"]', 'reward.sum=["0.5*own.py:glow", "0.5*brightness"]'),
        ("/data/my models/base/", "base"),
        ("C:\\Users\\me\\own.py", "own.py"),
        ("owner/model", "owner/model"),
        ("../models/base", "../models/base"),
        ("scale 1.0 (alpha 4 / rank 4)", "scale 1.0 (alpha 4 / rank 4)"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("first /data/a and /data/b", "first a and b"),
    ],
)
def test_absolute_paths_are_cut_down_to_their_last_part(text, expected, monkeypatch):
    assert without_folders(text) == expected
    monkeypatch.setattr("sys.argv", ["/usr/bin/diffusion-blend", "train"])
    assert training_command() == "diffusion-blend train"
