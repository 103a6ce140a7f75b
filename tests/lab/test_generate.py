"""`diffusion-blend generate`, run as a user does, on a tiny model in a folder."""

import json
import subprocess
import sys

import numpy
import pytest
import torch
from diffusion_blend.blend_core import Blend
from diffusion_blend.lab.cli import main
from diffusion_blend.lab.generation import run as making
from diffusion_blend.lab.options import read_rewards
from diffusion_blend.lab.toy import STUDIO, place
from diffusion_blend.pipelines import BlendEvaluation, Sampling, generate, load_base, load_factors
from PIL import Image

from ..lora_files import random_lora, write_lora
from ..pipelines.worlds import tiny_pipeline

PROMPTS = ["a red circle", "a blue square"]


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """A folder with base/, first.safetensors and second.safetensors."""
    folder = tmp_path_factory.mktemp("studio")
    pipe = tiny_pipeline()
    pipe.save_pretrained(folder / "base")
    for seed, name in enumerate(("first", "second"), start=31):
        write_lora(folder / f"{name}.safetensors", random_lora(pipe.unet, seed, size=0.02))
    return folder


def arguments(studio, out, *more):
    """A run of two prompts with two images each, in batches of three; later options win over earlier ones."""
    lora = [f"--reward={name}={studio / name}.safetensors" for name in ("first", "second")]
    settings = ["--weights=0.6, 0.4", "--steps=4", "--eta=1", "--cfg=2", "--seed=5", "--count=2", "--batch-size=3"]
    texts = [f"--prompt={text}" for text in PROMPTS]
    return ["generate", f"--base={studio / 'base'}", *lora, *settings, *texts, "--device=cpu", f"--out={out}", *more]


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def record_of(folder):
    return json.loads((folder / "generation.json").read_text())


def refusal(capsys, *command):
    """The message of a command that must be refused; what ran before it has written to the same stream."""
    assert main(list(command)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("diffusion-blend: ")
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("evaluation", ["exact", "stratified", "merged", "base"])
def test_a_record_makes_the_same_files_again(studio, tmp_path, evaluation):
    assert main(arguments(studio, tmp_path / "a", f"--evaluation={evaluation}")) == 0
    assert main(["generate", f"--repeat={tmp_path / 'a' / 'generation.json'}", f"--out={tmp_path / 'b'}"]) == 0
    made = files(tmp_path / "a")
    assert sorted(made) == ["00000.png", "00001.png", "00002.png", "00003.png", "generation.json"]
    assert made == files(tmp_path / "b")
    assert len(set(made.values())) == 5  # no two images equal


def test_the_images_are_those_of_the_python_host(studio, tmp_path):
    assert main(arguments(studio, tmp_path / "out", "--alignment=0.7")) == 0
    pipe = load_base(str(studio / "base"))
    factors, _ = load_factors(pipe, [studio / "first.safetensors", studio / "second.safetensors"])
    evaluation = BlendEvaluation.of("exact", Blend(("first", "second"), (0.6, 0.4), 0.7), factors)
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[1]]
    expected = generate(pipe, evaluation, prompts, [5, 6, 5], Sampling(steps=4, eta=1.0, cfg=2.0))
    for i, image in enumerate(expected):
        pixels = torch.from_numpy(numpy.array(Image.open(tmp_path / "out" / f"{i:05d}.png"))).permute(2, 0, 1)
        assert torch.equal(pixels, (image * 255).round().byte())


def test_the_record_says_what_was_made_with_what(studio, tmp_path):
    assert main(arguments(studio, tmp_path, "--evaluation=random", "--alignment=0.5")) == 0
    record = record_of(tmp_path)
    assert record["request"]["prompts"] == PROMPTS
    assert record["coefficients"] == pytest.approx({"base": 0.5, "first": 0.3, "second": 0.2})
    assert record["formula"] == "0.5 base + 0.3 first + 0.2 second"
    assert set(record["sha256"]) == {"first", "second"}
    assert set(record["versions"]) == {"diffusion-blend", "python", "torch", "diffusers", "transformers"}
    assert "modules" in record["reports"][0]
    assert [(image["prompt"], image["seed"]) for image in record["images"]] == [(p, s) for p in PROMPTS for s in (5, 6)]
    assert all(len(image["choices"]) == 4 for image in record["images"])
    assert record["images"][0]["choices"] == record["images"][2]["choices"]  # one seed, one series of choices


def test_msdda_takes_eta_from_the_files_or_from_the_command_and_repeats(studio, tmp_path):
    unet = tiny_pipeline().unet
    stated = write_lora(
        tmp_path / "second.safetensors", random_lora(unet, 32, size=0.02), {"diffusion_blend.eta": "0.4"}
    )
    fuse = ["--evaluation=msdda", "--eta=0", "--alignment=0.8", "--base-eta=0.9"]
    assert main(arguments(studio, tmp_path / "given", *fuse, "--etas=1, 0.4")) == 0
    rewards = [f"--reward=first={studio / 'first'}.safetensors", f"--reward=second={stated}"]
    others = [entry for entry in arguments(studio, tmp_path / "read", *fuse) if not entry.startswith("--reward")]
    assert main([*others, *rewards]) == 0
    originals, read = files(tmp_path / "given"), files(tmp_path / "read")
    record = record_of(tmp_path / "read")
    assert record["etas"] == record_of(tmp_path / "given")["etas"] == {"base": 0.9, "first": 1.0, "second": 0.4}
    assert [originals[f"0000{i}.png"] for i in range(4)] == [read[f"0000{i}.png"] for i in range(4)]
    assert main(["generate", f"--repeat={tmp_path / 'given' / 'generation.json'}", f"--out={tmp_path / 'b'}"]) == 0
    assert files(tmp_path / "b") == originals
    assert main(arguments(studio, tmp_path / "like", *fuse)) == 0
    assert files(tmp_path / "like")["00000.png"] != originals["00000.png"]


def test_until_is_recorded_and_repeated_and_leaves_the_last_steps_to_the_base(studio, tmp_path):
    assert main(arguments(studio, tmp_path / "a", "--until=0.5", "--evaluation=random")) == 0
    record = record_of(tmp_path / "a")
    assert record["request"]["until"] == 0.5
    assert record["formula"] == "0.6 first + 0.4 second; the base alone in the last 2 of 4 steps"
    assert all(image["choices"][2:] == ["base", "base"] for image in record["images"])
    assert main(["generate", f"--repeat={tmp_path / 'a' / 'generation.json'}", f"--out={tmp_path / 'b'}"]) == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert main(arguments(studio, tmp_path / "c", "--evaluation=random")) == 0
    assert files(tmp_path / "c")["00000.png"] != files(tmp_path / "a")["00000.png"]


def test_a_folder_begun_before_a_setting_existed_goes_on(studio, tmp_path):
    assert main(arguments(studio, tmp_path, "--evaluation=base")) == 0
    record = record_of(tmp_path)
    del record["request"]["etas"], record["request"]["base_eta"], record["request"]["until"]
    (tmp_path / "generation.json").write_text(json.dumps(record))
    assert main(arguments(studio, tmp_path, "--evaluation=base")) == 0


def test_kl_weights_in_the_files_enter_the_coefficients(studio, tmp_path):
    unet = tiny_pipeline().unet
    loras = [
        write_lora(tmp_path / f"{name}.safetensors", random_lora(unet, 51), {"diffusion_blend.kl_weight": kl_weight})
        for name, kl_weight in (("weak", "0.1"), ("strong", "0.3"))
    ]
    rewards = [f"--reward={lora.stem}={lora}" for lora in loras]
    more = ["--prompt=a", "--steps=1", "--device=cpu", f"--out={tmp_path / 'out'}"]
    assert main(["generate", f"--base={studio / 'base'}", *rewards, *more]) == 0
    assert record_of(tmp_path / "out")["coefficients"] == pytest.approx({"base": 0, "weak": 0.25, "strong": 0.75})


def test_a_stopped_run_goes_on_with_the_images_it_lacks(studio, tmp_path, monkeypatch, capsys):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main(arguments(studio, whole)) == 0
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*arguments)

    monkeypatch.setattr(making, "generate", interrupted)
    assert main(arguments(studio, stopped)) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert sorted(files(stopped)) == ["00000.png", "00001.png", "00002.png", "generation.json"]
    (stopped / "00001.png").unlink()
    kept = (stopped / "00000.png").stat().st_mtime_ns
    assert main(arguments(studio, stopped)) == 0
    assert files(stopped) == files(whole)
    assert (stopped / "00000.png").stat().st_mtime_ns == kept
    before = len(calls)
    assert main(arguments(studio, stopped)) == 0
    assert len(calls) == before  # nothing was missing


def test_a_folder_of_another_run_is_refused(studio, tmp_path, capsys):
    assert main(arguments(studio, tmp_path, "--evaluation=base")) == 0
    before = files(tmp_path)
    assert "differs in weights, evaluation" in refusal(capsys, *arguments(studio, tmp_path, "--weights=1, 0"))
    assert files(tmp_path) == before
    (tmp_path / "generation.json").unlink()
    assert "holds 00000.png but no generation.json" in refusal(capsys, *arguments(studio, tmp_path))


def test_a_repeat_refuses_changed_models_and_other_options(studio, tmp_path, capsys):
    lora = write_lora(tmp_path / "own.safetensors", random_lora(tiny_pipeline().unet, 41))
    one = ["generate", f"--base={studio / 'base'}", f"--reward=own={lora}", "--prompt=a", "--steps=1", "--device=cpu"]
    assert main([*one, f"--out={tmp_path / 'a'}"]) == 0
    repeat = ["generate", f"--repeat={tmp_path / 'a' / 'generation.json'}", f"--out={tmp_path / 'b'}"]
    message = refusal(capsys, *repeat, "--steps=9", "--batch-size=1")
    assert "--steps" in message and "--batch-size" in message
    write_lora(lora, random_lora(tiny_pipeline().unet, 42))
    assert "(own) has changed since the run" in refusal(capsys, *repeat)
    record = record_of(tmp_path / "a") | {"base_fingerprint": "other"}
    write_lora(lora, random_lora(tiny_pipeline().unet, 41))
    (tmp_path / "a" / "generation.json").write_text(json.dumps(record))
    assert "have changed since the run" in refusal(capsys, *repeat)
    (tmp_path / "a" / "generation.json").write_text("{}")
    assert "is not the record of a run" in refusal(capsys, *repeat)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--reward=third=nowhere.safetensors", "nowhere.safetensors (third) is no file"),
        ("--reward=first=again.safetensors", "two rewards are named first"),
        ("--reward=third", "expected NAME=PATH"),
        ("--weights=0.5, 0.3, 0.2", "3 weights (0.5, 0.3, 0.2) for 2 reward LoRAs"),
        ("--weights=0.5, -0.5", "expected numbers from 0 upwards"),
        ("--weights=much", "are not numbers"),
        ("--alignment=inf", "expected a finite number"),
        ("--evaluation=best", "expected one of exact"),
        ("--evaluation=anchored", "Choose budget"),
        ("--evaluation=sampled", "Choose random"),
        ("--size=33", "expected a multiple of 8"),
        ("--execution=fast", "expected one of sequential"),
        ("--dtype=int8", "expected float32"),
        ("--device=tpu", "expected auto, cpu or cuda"),
        ("--prompts=nowhere.txt", "nowhere.txt is no file"),
        ("--base=./nowhere", "cannot be opened as a base model"),
        ("--eta=2", "--eta"),
        ("--until=1.5", "--until"),
        ("--evaluation=msdda", "msdda has one per basis"),
        ("--etas=1, 1", "which fuses no steps"),
    ],
)
def test_unusable_input_is_one_message_and_nothing_is_written(studio, tmp_path, capsys, option, message):
    out = tmp_path / "out"
    shown = refusal(capsys, *arguments(studio, out, option))
    assert message in shown
    assert not out.exists()


@pytest.mark.parametrize("evaluation", ["random", "stratified"])
def test_extrapolation_with_one_variant_per_step_is_refused(studio, tmp_path, capsys, evaluation):
    shown = refusal(capsys, *arguments(studio, tmp_path / "out", f"--evaluation={evaluation}", "--alignment=1.5"))
    assert "Lower alignment to 1 or less" in shown
    assert not (tmp_path / "out").exists()


def test_without_prompt_or_reward_it_says_so(studio, tmp_path, capsys):
    base, out = f"--base={studio / 'base'}", f"--out={tmp_path / 'out'}"
    assert "no prompt came" in refusal(capsys, "generate", base, out, "--evaluation=base")
    assert "no reward LoRA came" in refusal(capsys, "generate", base, out, "--prompt=a")


def test_prompts_come_from_a_file_too(studio, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n\n  a blue square \n")
    more = [f"--prompts={tmp_path / 'prompts.txt'}", f"--out={tmp_path / 'out'}", "--evaluation=base", "--steps=1"]
    assert main(["generate", f"--base={studio / 'base'}", "--device=cpu", *more]) == 0
    assert record_of(tmp_path / "out")["request"]["prompts"] == PROMPTS


def test_the_toy_studios_short_names_travel(tmp_path):
    assert read_rewards(["calm"], "toy") == {"calm": "toy:calm"}
    assert place("toy:calm") == str(STUDIO / "loras" / "calm.safetensors")
    assert place("toy") == str(STUDIO / "base")


def test_help_answers_without_loading_torch():
    code = "import sys; from diffusion_blend.lab.cli import main; main(['generate', '--help'])"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("False")
