"""`diffusion-blend diagnose`, run as a user does, on a tiny model in a folder."""

import json

import pytest
import torch
from diffusion_blend.blend_core import Blend, LoRABank
from diffusion_blend.blend_core.diagnostics import disagreement
from diffusion_blend.blend_core.estimators import exact, merged
from diffusion_blend.blend_core.rewards import Draws, load_reward
from diffusion_blend.lab.cli import main
from diffusion_blend.pipelines import BlendEvaluation, Sampling, blended, generate, load_base, load_factors
from PIL import Image

from ..lora_files import random_lora, write_lora
from ..pipelines.worlds import tiny_pipeline
from ..trainers import worlds

PROMPTS = ["a red circle", "a blue square"]
CFG, STEPS, SEED = 2.0, 4, 5


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """A folder with base/, first.safetensors and second.safetensors."""
    folder = tmp_path_factory.mktemp("studio")
    pipe = tiny_pipeline()
    pipe.save_pretrained(folder / "base")
    for seed, name in enumerate(("first", "second"), start=31):
        write_lora(folder / f"{name}.safetensors", random_lora(pipe.unet, seed, size=0.02))
    return folder


def diagnose(studio, out, *more):
    lora = [f"--reward={name}={studio / name}.safetensors" for name in ("first", "second")]
    settings = ["--weights=0.6, 0.4", f"--steps={STEPS}", "--eta=1", f"--cfg={CFG}", f"--seed={SEED}", "--device=cpu"]
    texts = [f"--prompt={text}" for text in PROMPTS]
    status = main(["diagnose", f"--base={studio / 'base'}", *lora, *settings, *texts, f"--out={out}", *more])
    return status, json.loads((out / "diagnosis.json").read_text()) if status == 0 else None


def first_predictions(studio, *plans):
    """(x, D of base, first, second) before the first step, by the pipeline's network and scheduler; or D of plans."""
    pipe = load_base(str(studio / "base"))
    factors, _ = load_factors(pipe, [studio / "first.safetensors", studio / "second.safetensors"])
    bank = LoRABank(factors)
    pipe.scheduler.set_timesteps(STEPS)
    timestep = pipe.scheduler.timesteps[0]
    signal = pipe.scheduler.alphas_cumprod[timestep].sqrt()
    shape = (4, 8, 8)
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(SEED)) for _ in PROMPTS])
    prompted, empty = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
    text = torch.cat([empty, prompted])
    predictions = []
    for plan in plans or [exact([float(i == variant) for i in range(3)], 1, [0, 0]) for variant in range(3)]:
        with blended(pipe, bank, plan), torch.no_grad():
            eps = pipe.unet(torch.cat([noise, noise]), timestep, encoder_hidden_states=text).sample
        uncond, cond = eps.chunk(2)
        guided = uncond + CFG * (cond - uncond)
        predictions.append(pipe.scheduler.step(guided, timestep, noise).pred_original_sample)
    return noise / signal, torch.stack(predictions)


def test_the_numbers_are_those_of_the_pipeline(studio, tmp_path, capsys):
    status, read = diagnose(studio, tmp_path / "out")
    assert status == 0
    x, denoised = first_predictions(studio)
    expected = disagreement(x, denoised, (0.0, 0.6, 0.4), 0, read["steps"][0]["sigma"])
    for field in ("bends", "cosines"):
        assert read["steps"][0][field] == pytest.approx(getattr(expected, field), rel=1e-4, abs=1e-6)
    assert read["steps"][0]["bend"] == pytest.approx(expected.bend, rel=1e-4)
    assert len(read["steps"]) == STEPS
    assert read["evaluations"] == (3 + 1) * STEPS and read["blend_evaluations"] == 2 * STEPS  # merged comes too
    assert read["request"]["prompts"] == PROMPTS and read["gaps"] == read["scores"] == []
    with Image.open(tmp_path / "out" / "diagnosis.png") as picture:
        assert picture.width == 1000
    printed = capsys.readouterr().out
    assert "0.6 first + 0.4 second" in printed and "Verdict: " in printed and "cos first, second" in printed


def test_the_gap_of_merged_evaluation_is_that_of_the_first_step_of_both_ways(studio, tmp_path, capsys):
    """Against the pipeline's own predictions under the two estimators."""
    _, read = diagnose(studio, tmp_path / "out")
    _, denoised = first_predictions(studio)
    together = first_predictions(studio, merged((0.0, 0.6, 0.4), 1, [0, 0]))[1][0]
    blend = 0.6 * denoised[1] + 0.4 * denoised[2]
    apart, way = (together - blend).flatten(1), (blend - denoised[0]).flatten(1)
    gap, cosine = (apart.norm(dim=1) / way.norm(dim=1)).mean(), torch.cosine_similarity(apart, way).mean()
    assert read["steps"][0]["merged"] == pytest.approx(gap.item(), rel=1e-3)
    assert read["steps"][0]["merged_cosine"] == pytest.approx(cosine.item(), abs=1e-3)
    assert 0 < gap < 1 and "Merged or exact: they differ by" in read["way"] and read["way"] in capsys.readouterr().out


def test_of_one_lora_there_is_no_gap_to_measure(studio, tmp_path):
    status, read = diagnose(studio, tmp_path / "out", "--weights=1, 0")
    assert status == 0 and read["way"] == "" and {step["merged"] for step in read["steps"]} == {None}
    assert read["evaluations"] == 3 * STEPS


def test_score_compares_the_images_that_generate_makes_either_way(studio, tmp_path, capsys):
    options = ["--score=brightness=0.75", "--score=contrast=0.25", "--images=4"]
    status, read = diagnose(studio, tmp_path / "out", *options)
    names = [score["name"] for score in read["scores"]]
    assert status == 0 and names == ["brightness", "contrast", "the weighted reward"]
    pipe = load_base(str(studio / "base"))
    factors, _ = load_factors(pipe, [studio / "first.safetensors", studio / "second.safetensors"])
    pairs = [(text, SEED + i) for text in PROMPTS for i in range(4)]
    prompts, seeds = zip(*pairs, strict=True)
    expected = {}
    for way in ("exact", "merged"):
        evaluation = BlendEvaluation.of(way, Blend(("first", "second"), (0.6, 0.4)), factors)
        images = generate(pipe, evaluation, prompts, seeds, Sampling(STEPS, 1.0, CFG))
        brightness, contrast = (load_reward(name)(images, prompts) for name in ("brightness", "contrast"))
        expected[way] = [brightness, contrast, 0.75 * brightness + 0.25 * contrast]
    for score, exact_scores, merged_scores in zip(read["scores"], *expected.values(), strict=True):
        assert score["pairs"] == 8 and score["exact"] == pytest.approx(exact_scores.mean().item(), abs=1e-4)
        assert score["merged"] == pytest.approx(merged_scores.mean().item(), abs=1e-4)
        by_prompt = (exact_scores - merged_scores).reshape(2, 4).numpy()
        assert score["difference"] == pytest.approx(vars(Draws(2, 4).mean(by_prompt)), abs=1e-4)
    assert read["evaluations"] == (3 + 1) * STEPS + 4 * (2 + 1) * STEPS
    assert read["comparison"] == {"rewards": ["brightness", "contrast"], "weights": [0.75, 0.25], "images": 4}
    printed = capsys.readouterr().out
    assert read["way"] in printed and "by the weighted reward" in read["way"].splitlines()[-1].lower()
    assert "exact - merged" in printed


@pytest.mark.parametrize("kind", ["sd3", "flux", "schnell"])
def test_flow_models_are_diagnosed_too(tmp_path, kind):
    """Those of Flux that take guidance as an input have no unconditional branch at any cfg."""
    pipe = getattr(worlds, kind)()
    pipe.save_pretrained(tmp_path / "base")
    files = [
        write_lora(tmp_path / f"{i}.safetensors", random_lora(pipe.transformer, 30 + i, size=0.02)) for i in (1, 2)
    ]
    lora = [f"--reward=r{i}={file}" for i, file in enumerate(files)]
    options = ["--reward-model=brightness=r0", "--kl-weight=0.5", "--samples=3", "--probes=1", "--device=cpu"]
    sampling = ["--steps=3", "--eta=0", "--cfg=3.5", "--size=16", "--prompt=a red circle", f"--out={tmp_path / 'out'}"]
    assert main(["diagnose", f"--base={tmp_path / 'base'}", *lora, *options, *sampling]) == 0
    read = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert len(read["steps"]) == 3 and len(read["gaps"]) == 1
    assert all(bend > 0 for step in read["steps"] for bend in step["bends"])


def test_a_probe_follows_the_kl_weight(studio, tmp_path):
    options = ["--reward-model=brightness=first", "--samples=6", "--probes=2", "--alignment=2"]
    status, read = diagnose(studio, tmp_path / "a", *options, "--kl-weight=0.5")
    assert status == 0
    assert [gap["step"] for gap in read["gaps"]] == [0, 2] and {gap["name"] for gap in read["gaps"]} == {"first"}
    assert all(gap["kl_weight"] == pytest.approx(0.25) and gap["gap"] >= 0 for gap in read["gaps"])
    assert read["evaluations"] == (3 + 1) * STEPS + 6 * (4 + 2)
    _, tight = diagnose(studio, tmp_path / "b", *options, "--kl-weight=0.0001")
    assert tight["verdict"]["level"] == "doubtful" and tight["gaps"][0]["gap"] > read["gaps"][0]["gap"]
    assert "KL weight 5e-05 is too small" in " ".join(tight["verdict"]["reasons"])


def test_one_reward_alone_is_exact(studio, tmp_path):
    _, read = diagnose(studio, tmp_path, "--weights=0, 1")
    assert read["verdict"]["level"] == "exact" and "second alone" in read["verdict"]["reasons"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reward-model=brightness"], "expected REWARD=NAME"),
        (["--reward-model=brightness=third"], "NAME one of first, second"),
        (["--reward-model=brightness=first"], "does not state the KL weight"),
        (["--steps=7"], "divisor"),
        (["--score=brightness", "--images=3"], "6 images of each way are to be scored, expected 8 or more"),
        (["--score=brightness", "--weights=1, 0"], "merged and exact are the same here"),
        (["--score=magic"], "magic"),
    ],
)
def test_what_cannot_be_used_is_refused(studio, tmp_path, capsys, options, message):
    assert diagnose(studio, tmp_path, *options) == (2, None)
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error
    assert list(tmp_path.iterdir()) == []
