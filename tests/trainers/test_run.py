"""Whole runs on tiny pipelines: what they write, how they stop, go on and refuse."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from diffusion_blend.blend_core import read_adapter
from diffusion_blend.blend_core.errors import BlendError
from diffusion_blend.pipelines import load_base, load_factors
from diffusion_blend.trainers import accelerator as opening
from diffusion_blend.trainers import train as loop
from diffusion_blend.trainers.data.pairing import make_pairs
from diffusion_blend.trainers.data.pairs import PairSet
from diffusion_blend.trainers.loop import checkpoint
from diffusion_blend.trainers.loop.log import hacked, read_log
from diffusion_blend.trainers.model.base import Base
from diffusion_blend.trainers.model.lora_policy import LoraPolicy
from diffusion_blend.trainers.rewards import open_rewards
from diffusion_blend.trainers.settings.fields import to_flat
from diffusion_blend.trainers.train import train
from safetensors.torch import load_file, save_file

from .original_layout import checkpoint as checkpoint_of
from .worlds import FAMILIES, PROMPTS, save, settings

QUICK = {"optimisation__images_per_pass": 4}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {kind: save(kind, root / kind) for kind in ("sd15", "sdxl", "sd3", "flux")}


def same(one: Path, other: Path, tolerance: float = 0.0) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    assert max((first[key] - second[key]).abs().max().item() for key in first) <= tolerance


def moved(path: Path) -> bool:
    return any(value.abs().max() > 0 for key, value in load_file(path).items() if "up" in key or "lora_B" in key)


RUNS = [
    ("sd15", {"algorithm": "dpok"}),
    ("sd15", {"algorithm": "grpo", "policy_gradient__trained_steps": 2, "reuse": 2}),
    ("sd15", {"algorithm": "draft"}),
    ("sdxl", {"algorithm": "draft", "draft__through": "last", "draft__kl_steps": 1}),
    ("sd3", {"algorithm": "grpo", "reward__watch": ("contrast",), "output__validate_every": 1,
             "output__validation_images": 4, "output__grid": 4}),
    ("flux", {"algorithm": "grpo", "sampling__size": 16}),
]  # fmt: skip


ARCHITECTURES = {
    "sd15": "stable-diffusion-v1/lora",
    "sdxl": "stable-diffusion-xl-v1-base/lora",
    "sd3": "stable-diffusion-v3-medium/lora",
    "flux": "flux-1-dev/lora",
}


@pytest.mark.parametrize(("kind", "changes"), RUNS, ids=[f"{kind} {c['algorithm']}" for kind, c in RUNS])
def test_a_run_leaves_a_lora_that_fits_its_base_and_says_how_it_was_made(bases, tmp_path, kind, changes):
    config = settings(bases[kind], tmp_path / "run", **QUICK | changes)
    path = train(config)
    assert moved(path)
    _, (report,) = load_factors(load_base(str(bases[kind])), [path])
    assert report.matched == report.in_file > 0
    adapter = read_adapter(path)
    assert adapter.kl_weight == config.kl_weight and adapter.rewards == ("brightness",)
    facts = {key.removeprefix("diffusion_blend."): value for key, value in adapter.metadata.items()}
    expected = {"algorithm": config.algorithm, "kl_form": "exact", "rank": "2", "sampling_steps": "4", "cfg": "2.0"}
    assert expected.items() <= facts.items()
    flow = kind in ("sd3", "flux")
    assert facts["transition"] == ("flow" if flow else "ddim")
    assert ("eta" in facts) is not flow and ("noise_level" in facts) is flow
    assert facts["modelspec.architecture"] == ARCHITECTURES[kind]
    assert facts.get("guidance") == ("distilled" if kind == "flux" else None)
    assert len(facts["base_sha256"]) == 64 and facts["ss_new_sd_model_hash"] == facts["base_sha256"]
    assert facts["modelspec.sai_model_spec"] == "1.0.1" and facts["modelspec.hash_sha256"].startswith("0x")
    log = read_log(path.parent / "log.jsonl")
    assert [line["epoch"] for line in log if line["epoch"] >= 0] == [0, 1]
    assert {"reward", "path_kl", "gradient_norm", "images_per_second"} <= log[-1].keys()
    if config.output.validate_every:
        assert "valid_contrast" in log[-1] and len(list((path.parent / "grids").glob("*.png"))) == 3


def test_a_checkpoint_in_the_original_layout_trains_as_its_folder(bases, tmp_path):
    file, config = tmp_path / "tiny.safetensors", tmp_path / "config"
    save_file(checkpoint_of(FAMILIES["sd15"]()), file)
    shutil.copytree(bases["sd15"], config, ignore=shutil.ignore_patterns("*.safetensors"))
    options = {"base__config": str(config), "base__name": "tiny", **QUICK}
    path = train(settings(file, tmp_path / "file", **options))
    assert moved(path)
    same(train(settings(bases["sd15"], tmp_path / "folder", base__name="tiny", **QUICK)), path)
    adapter = read_adapter(path)
    assert adapter.metadata["diffusion_blend.base_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert adapter.metadata["diffusion_blend.base_model"] == "tiny"


def test_a_checkpoint_needs_a_config_folder_of_its_kind(bases, tmp_path):
    file, wrong = tmp_path / "tiny.safetensors", tmp_path / "wrong"
    save_file(checkpoint_of(FAMILIES["sd15"]()), file)
    wrong.mkdir()
    (wrong / "model_index.json").write_text('{"_class_name": "AudioLDMPipeline"}')
    for config, message in (
        ("", r"Give --config \(train: base.config\) a local diffusers folder"),
        (str(tmp_path), "has no model_index.json"),
        (str(wrong), "is of a AudioLDMPipeline, which diffusers opens from no single file"),
        (str(bases["sd3"]), "cannot be opened as a base model"),
    ):
        with pytest.raises(BlendError, match=message):
            train(settings(file, tmp_path / "run", base__config=config))


def pairs_of_greys(folder: Path) -> str:
    """A folder of pairs in which the lighter image is the better one."""
    from PIL import Image

    folder.mkdir()
    lines = []
    for i, prompt in enumerate(PROMPTS):
        for name, grey in (("better", 230), ("worse", 20)):
            Image.new("RGB", (20, 16), (grey, grey, grey + i)).save(folder / f"{name}{i}.png")
        lines.append({"prompt": prompt, "better": f"better{i}.png", "worse": f"worse{i}.png"})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(folder)


def test_dpo_learns_which_picture_is_better(bases, tmp_path):
    pairs = pairs_of_greys(tmp_path / "pairs")
    config = settings(
        bases["sd15"], tmp_path / "run", algorithm="dpo", prompts__pairs=pairs, prompts_per_epoch=4, epochs=20,
        reward__name="", reward__label="grey", optimisation__learning_rate=1e-2, output__checkpoint_every=0,
        sampling__cfg=1.0, **QUICK,
    )  # fmt: skip
    path = train(config)
    log = read_log(path.parent / "log.jsonl")
    assert log[0]["preference_loss"] == pytest.approx(0.6931, abs=1e-3)
    late = sum(line["preference_loss"] for line in log[-5:]) / 5
    assert late < 0.69 and path.stem == "grey"


def test_pairs_without_a_reward_may_be_watched_by_one(bases, tmp_path):
    config = settings(
        bases["sd15"], tmp_path / "run", algorithm="dpo", prompts__pairs=pairs_of_greys(tmp_path / "pairs"),
        prompts_per_epoch=4, reward__name="", reward__watch=("contrast",), output__validate_every=1,
        output__validation_images=4, **QUICK,
    )  # fmt: skip
    path = train(config)
    log = read_log(path.parent / "log.jsonl")
    assert [line["epoch"] for line in log if "valid_contrast" in line] == [-1, 0, 1]
    assert moved(path)  # the last state: without a trained reward no epoch is the best one


def test_a_reward_grows_and_a_huge_kl_weight_holds_it(bases, tmp_path):
    gains = {}
    for kl_weight in (1e-5, 1e5):
        config = settings(
            bases["sd15"], tmp_path / f"{kl_weight:g}", algorithm="draft", kl_weight=kl_weight, epochs=8,
            optimisation__learning_rate=6e-3, output__validate_every=8, output__validation_images=16,
            output__checkpoint_every=0, output__keep_best=False, output__grid=0, **QUICK,
        )  # fmt: skip
        log = read_log(train(config).parent / "log.jsonl")
        gains[kl_weight] = (log[-1]["valid_brightness"] - log[0]["valid_brightness"], log[-1]["valid_path_kl"])
    assert gains[1e-5][0] > 0.002 and gains[1e-5][1] > 10 * gains[1e5][1]
    assert abs(gains[1e5][0]) < gains[1e-5][0] / 2


def program(config, folder: Path, before: str = "") -> list[str]:
    """A Python that runs `config` as the command line would; before: code that is run first."""
    flat = {key.replace(".", "__"): value for key, value in to_flat(config).items()}
    script = folder / "program.py"
    script.write_text(
        "import faulthandler, sys, torch\ntorch.set_num_threads(1)\n"
        "faulthandler.dump_traceback_later(240, exit=True)\n"  # a stall fails with the place where it happened
        f"{before}"
        "from diffusion_blend.blend_core.errors import BlendError\n"
        "from diffusion_blend.trainers.settings.config import read_config\n"
        "from diffusion_blend.trainers.train import train\n"
        f"try:\n    train(read_config(**{flat!r}))\n"
        "except KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    return [sys.executable, str(script)]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def test_killed_and_stopped_runs_go_on_exactly(bases, tmp_path):
    """One run uninterrupted; the same killed by SIGKILL, then stopped by SIGTERM, then finished."""
    options = {"algorithm": "dpok", "epochs": 5, "policy_gradient__value_updates": 1, "optimisation__average": 0.9,
               **QUICK}  # fmt: skip
    whole = train(settings(bases["sd15"], tmp_path / "whole", **options))
    broken = settings(bases["sd15"], tmp_path / "broken", **options)
    marks = tmp_path / "broken" / "checkpoints"
    for number, epochs, code in ((signal.SIGKILL, 1, -signal.SIGKILL), (signal.SIGTERM, 2, 130)):
        process = subprocess.Popen(program(broken, tmp_path), env=environment(), stdout=-1, stderr=-1)
        deadline = time.monotonic() + 90
        while len(done := checkpoint.checkpoints(marks)) == 0 or int(done[-1].name[-6:]) < epochs:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        said, errors = process.communicate(timeout=90)
        assert process.returncode == code, errors.decode()[-2000:]
        assert (tmp_path / "broken" / "brightness.safetensors").exists() is (code == 130)
    assert b"stopped; saved after" in said
    same(whole, train(broken))
    reference = read_log(tmp_path / "whole" / "log.jsonl")
    resumed = read_log(tmp_path / "broken" / "log.jsonl")
    assert [line["epoch"] for line in resumed] == list(range(5))
    assert [line["reward"] for line in resumed] == [line["reward"] for line in reference]


def test_processes_may_look_at_the_folder_at_once(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: checkpoint.check_space(tmp_path / "run", 1), range(400))) == [None] * 400
    assert not list((tmp_path / "run").iterdir())


def two_processes(config, folder: Path, before: str = "") -> str:
    """Run `config` on two processes; what they print."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, program(config, folder, before)[1]]
    for _ in range(2):
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
        if "Timeout (0:04:00)!" not in done.stderr:
            break
        # gloo stalled once in some 35 launches on a loaded machine; a run goes on where it was, so it is started again
        warnings.warn(f"two processes stalled and are started again:\n{done.stderr}", stacklevel=2)
    assert done.returncode == 0, done.stderr  # whole: the first traceback is the cause
    return done.stdout


OWN_REWARD = """
import os
from pathlib import Path

mine = Path(__file__).parent / f"calls-{os.environ.get('RANK', '0')}"
mine.touch()

def own(images):
    with mine.open("a") as file:
        file.write(f"{len(images)} ")
    return images.mean((1, 2, 3))
"""


def test_two_processes_equal_one_wherever_the_reward_is(bases, tmp_path):
    options = {"epochs": 4, "images_per_prompt": 4, "updates_per_epoch": 2, "output__checkpoint_every": 0,
               "output__validate_every": 4, "output__validation_images": 4, "algorithm": "grpo",
               "reward__label": "own", "reward__watch": ("contrast",)}  # fmt: skip
    for name in ("one", "every", "main"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.py").write_text(OWN_REWARD)
        place = {"reward__name": str(tmp_path / name / "own.py"), "reward__place": name if name != "one" else "main"}
        config = settings(bases["sd15"], tmp_path / name, **options | place)
        if name == "one":
            train(config)
        else:
            assert "on 2 process(es)" in two_processes(config, tmp_path)
    same(tmp_path / "one" / "own.safetensors", tmp_path / "every" / "own.safetensors", tolerance=1e-5)
    same(tmp_path / "every" / "own.safetensors", tmp_path / "main" / "own.safetensors")
    logs = {name: read_log(tmp_path / name / "log.jsonl")[-1] for name in ("one", "every", "main")}
    for figure in ("reward", "path_kl", "gradient_norm", "valid_own", "valid_contrast"):
        assert logs["every"][figure] == pytest.approx(logs["one"][figure], rel=1e-3, abs=1e-6)
        assert logs["main"][figure] == logs["every"][figure]
    calls = {file.relative_to(tmp_path).as_posix(): file.read_text() for file in tmp_path.glob("*/calls-*")}
    assert set(calls) == {"one/calls-0", "every/calls-0", "every/calls-1", "main/calls-0"}  # main: loaded by one alone
    assert set(calls["every/calls-1"].split()) == {"2"} and set(calls["main/calls-0"].split()) == {"4"}


SHARING = """
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from diffusion_blend.trainers import accelerator as opening

class Sharing(Accelerator):
    # accelerate has FSDP for GPUs alone; torch's works on CPUs too

    def __init__(self, **options):
        super().__init__(**options)
        self.state.distributed_type = DistributedType.FSDP
        self.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["BasicTransformerBlock"], cpu_ram_efficient_loading=False,
        )

    def prepare(self, network, optimiser):
        prepared = super().prepare(network, optimiser)
        print("parameters are", {type(p.data).__name__ for p in prepared[0].parameters()})
        return prepared

opening.Accelerator = Sharing
"""


def test_a_network_that_is_shared_out_by_fsdp_learns_the_same_and_goes_on_exactly(bases, tmp_path):
    """Against one process that holds the whole of it; in between the shared run ends and goes on with more epochs."""
    options = {"algorithm": "dpok", "optimisation__average": 0.5, "output__validate_every": 1,
               "output__validation_images": 4, "policy_gradient__value_updates": 1}  # fmt: skip
    one = train(settings(bases["sd15"], tmp_path / "one", epochs=2, **options))
    for epochs in (1, 2):
        said = two_processes(settings(bases["sd15"], tmp_path / "two", epochs=epochs, **options), tmp_path, SHARING)
        assert "parameters are {'DTensor'}" in said and "on 2 process(es)" in said
    assert "going on after 1 epochs" in said
    same(one, tmp_path / "two" / "brightness.safetensors", tolerance=2e-5)  # an update moves each weight by 1e-3
    single_run, shared = (read_log(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    assert [line["epoch"] for line in shared] == [line["epoch"] for line in single_run] == [-1, 0, 1]
    for name in ("reward", "path_kl", "gradient_norm", "valid_brightness"):
        assert shared[-1][name] == pytest.approx(single_run[-1][name], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_other_ways_of_sharing_a_network_out_are_refused(kind):
    accelerator = SimpleNamespace(distributed_type=DistributedType[kind], is_fsdp2=False)
    with pytest.raises(BlendError, match=f"configured for {kind}, expected .* fsdp_version 2"):
        opening.check_distribution(accelerator)


def test_a_full_disk_leaves_the_previous_checkpoint_and_says_so(bases, tmp_path, monkeypatch):
    config = settings(bases["sd15"], tmp_path / "run", **QUICK)
    saves = []

    def fsync(handle, original=os.fsync):
        saves.append(handle)
        if len(saves) == 3:  # the second checkpoint's file; each save also flushes the folder
            raise OSError(28, "No space left on device")
        original(handle)

    monkeypatch.setattr(checkpoint.os, "fsync", fsync)
    with pytest.raises(BlendError, match="epoch-000002 could not be saved: the disk is full; epoch-000001 is whole"):
        train(config)
    monkeypatch.undo()
    assert [place.name for place in checkpoint.checkpoints(tmp_path / "run" / "checkpoints")] == ["epoch-000001"]
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    resumed = train(config)
    same(train(settings(bases["sd15"], tmp_path / "whole", **QUICK)), resumed)


def test_a_checkpoint_of_other_settings_is_refused_before_anything_loads(bases, tmp_path, monkeypatch):
    train(settings(bases["sd15"], tmp_path / "run", **QUICK))
    monkeypatch.setattr(loop, "open_base", lambda *_: pytest.fail("the base was loaded"))
    with pytest.raises(BlendError, match=r"other settings \(kl_weight was 0.01, is 0.02\)"):
        train(settings(bases["sd15"], tmp_path / "run", kl_weight=0.02, **QUICK))


def test_the_run_ends_at_its_kl_budget_and_keeps_the_best_state(bases, tmp_path):
    config = settings(
        bases["sd15"], tmp_path / "run", algorithm="draft", epochs=20, optimisation__learning_rate=1e-2,
        output__validate_every=1, output__validation_images=4, output__kl_budget=0.05, output__grid=0, kl_weight=1e-4,
        **QUICK,
    )  # fmt: skip
    train(config)
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert len(log) < 12 and log[-1]["valid_path_kl"] > 0.05 and log[0]["valid_path_kl"] == 0
    state = checkpoint.load_checkpoint(tmp_path / "run" / "checkpoints", config, torch.device("cpu"))
    objectives = [line["valid_brightness"] - 1e-4 * line["valid_path_kl"] for line in log[1:]]
    assert state["best"]["objective"] == pytest.approx(max(objectives), abs=1e-6)


def test_the_alarm_rings_only_when_one_reward_rises_and_another_falls():
    noise = torch.randn(64, generator=torch.Generator().manual_seed(0))
    up, down, flat = (torch.zeros(64), noise * 0.1 + 1), (torch.zeros(64), noise * 0.1 - 1), (noise, noise)
    assert hacked(up, {"other": down, "steady": flat}) == ["other"]
    assert hacked(flat, {"other": down}) == [] and hacked(up, {"other": up}) == []


def test_a_loss_that_is_no_number_stops_the_run(bases, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("def broken(images):\n    return images.mean((1, 2, 3)) * 0 + 1e38 * 1e38\n")
    with pytest.raises(BlendError, match="NaN or infinite"):
        train(settings(bases["sd15"], tmp_path / "run", reward__name=str(file), **QUICK))


BAD = [
    ({"prompts__file": "nowhere.txt"}, "nowhere.txt does not exist"),
    ({"reward__name": "pickscore"}, "pickscore"),
    ({"reward__name": "no_such_reward"}, "unknown"),
    ({"reward__name": "", "reward__sum": ("1*aesthetic", "pickscore")}, "expected a weight, a star and a reward"),
    ({"reward__sum": ("1*aesthetic",)}, "Leave one of them empty"),
    ({"algorithm": "draft", "reward__name": "jpeg_compressibility"}, "has no gradient"),
    ({"algorithm": "draft", "reward__place": "main"}, "does not cross processes"),
    ({"reward__place": "somewhere"}, "expected one of every, main"),
    ({"algorithm": "dpo"}, "prompts.pairs is empty"),
    ({"optimisation__images_per_pass": 3}, "do not divide"),
    ({"sampling__eta": 0.0}, "no step has a likelihood"),
    ({"kl_weight": 0.0}, "kl_weight is 0"),
    ({"images_per_prompt": 1, "prompts_per_epoch": 4}, "grpo compares"),
    ({"algorithm": "ppo"}, "expected one of dpok"),
    ({"rewarded_steps": 99}, "rewarded_steps is 99, expected 0"),
    ({"algorithm": "draft", "rewarded_steps": 2}, "draft has settings of its own"),
    ({"draft__steps": 9, "algorithm": "draft"}, "draft.steps is 9"),
    ({"algorithm": "dpo", "prompts__pairs": "pairs", "reuse": 2}, "stores no trajectories"),
    ({"output__trackers": ("no_tracker",)}, "trackers"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[next(iter(changes)) for changes, _ in BAD])
def test_bad_input_is_refused_before_the_base_is_loaded(bases, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(loop, "open_base", lambda *_: pytest.fail("the base was loaded"))
    with pytest.raises(BlendError, match=message):
        train(settings(bases["sd15"], tmp_path / "run", **changes))


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """By name and step, from the event files of a folder: length, checksum, data, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    figures = {}
    for file in folder.glob("events.out.tfevents.*"):
        content, place = file.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            figures |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            place += 12 + length + 4
    return figures


def test_tensorboard_gets_the_figures_of_the_log(bases, tmp_path):
    pytest.importorskip("tensorboardX")
    options = {"output__trackers": ("tensorboard",), "output__validate_every": 2, "output__validation_images": 4}
    train(settings(bases["sd15"], tmp_path / "run", **QUICK | options))
    figures = scalars(tmp_path / "run" / "diffusion-blend")
    for line in read_log(tmp_path / "run" / "log.jsonl"):
        for name in line.keys() - {"epoch"}:
            assert figures[name, line["epoch"]] == pytest.approx(line[name], rel=1e-6)
    assert {("reward", 0), ("path_kl", 1), ("valid_brightness", -1), ("valid_path_kl", 1)} <= figures.keys()


def test_a_tracker_without_its_package_is_refused_before_anything_loads(bases, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "open_base", lambda *_: pytest.fail("the base was loaded"))
    monkeypatch.setattr(opening, "get_available_trackers", lambda: [])
    with pytest.raises(BlendError, match=r"names wandb, whose package is not installed \(installed here: none\)"):
        train(settings(bases["sd15"], tmp_path / "run", output__trackers=("wandb",)))


def test_an_empty_prompts_file_is_refused(bases, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    with pytest.raises(BlendError, match="is empty"):
        train(settings(bases["sd15"], tmp_path / "run", prompts__file=str(empty)))


def test_a_base_that_is_none_is_refused(tmp_path):
    with pytest.raises(BlendError, match="cannot be opened as a base model"):
        train(settings(tmp_path, tmp_path / "run"))


def test_pairs_name_the_image_that_the_reward_prefers(bases, tmp_path):
    config = settings(bases["sd15"], tmp_path / "run")
    rewards = open_rewards(config, "cpu")
    file = make_pairs(config, rewards, tmp_path / "pairs", count=3, candidates=3)
    pairs = PairSet(file.parent)
    assert len(pairs) == 3 and set(pairs.prompts) <= set(PROMPTS)
    policy = LoraPolicy(Base(load_base(str(bases["sd15"]))), config)
    better, worse = (rewards.trained(pairs._images(range(3), side, policy)) for side in ("better", "worse"))
    assert (better >= worse).all() and (better > worse).any()
    with pytest.raises(BlendError, match=r"pairs.jsonl does not exist"):
        PairSet(tmp_path)
    file.write_text('{"prompt": "a", "better": "none.png", "worse": "none.png"}\n')
    with pytest.raises(BlendError, match=r"line 1 .*none.png, which does not exist"):
        PairSet(file.parent)
