"""`diffusion-blend evaluate` on a tiny model in a folder: methods that must coincide, and runs that must."""

import csv
import itertools
import json
import signal
import subprocess
import sys
from html.parser import HTMLParser

import numpy
import pyarrow.parquet
import pytest
import torch
from diffusers import DDIMScheduler
from diffusion_blend.blend_core import Blend, BlendError
from diffusion_blend.blend_core.estimators import exact
from diffusion_blend.blend_core.rewards import Draws, reward_cards
from diffusion_blend.lab.cli import main
from diffusion_blend.lab.evaluation.evaluation import Evaluation
from diffusion_blend.lab.evaluation.host import Batch
from diffusion_blend.lab.evaluation.methods import (
    METHODS,
    EvaluationPoint,
    coefficients_of,
    points_of,
    rlg_coefficients,
)
from diffusion_blend.lab.evaluation.opening import open_host
from diffusion_blend.lab.evaluation.protocol import PROTOCOLS, Search, read_protocol
from diffusion_blend.lab.evaluation.queue import finished
from diffusion_blend.lab.toy import late_cut, strengths
from diffusion_blend.lab.toy.results import filled
from diffusion_blend.lab.toy.rewards import toy_rewards, toy_watched
from diffusion_blend.pipelines import BlendEvaluation, Sampling, generate, load_base, load_factors
from diffusion_blend.trainers.model.rollout import rollout
from diffusion_blend.trainers.settings.config import read_config
from diffusion_blend.trainers.settings.rules import check
from safetensors.torch import load_file, save_file

from ..lora_files import random_lora, write_lora
from ..pipelines.worlds import tiny_pipeline

PROMPTS, SEEDS = ["a red circle", "a blue square"], [3, 4]
PAIRS = list(zip(*itertools.product(PROMPTS, SEEDS), strict=True))
STEPS = 4
FIRST = (1.0, 0.0)
HALF = (0.5, 0.5)
PROTOCOL = """
methods = [
  "base", "mpa", "merged", "soup_factors", "stratified", "best_of_n", "kla", "oracle", "merged_dial", "oracle_dial",
  "export", "distilled",
]
preferences = [[1.0, 0.0], [0.5, 0.5]]
dial_preferences = [[0.5, 0.5]]
alignments = [0.0, 1.0, 1.5]
images_per_pass = 3
models.base = "{folder}/base"
models.loras = ["first={folder}/first.safetensors", "second={folder}/second.safetensors"]
models.oracles = ["1, 0={folder}/first.safetensors", "0.5, 0.5={folder}/second.safetensors"]
models.distilled = ["1, 0={folder}/first.safetensors"]
rewards = {{ names = ["brightness", "contrast"], watch = ["colourfulness"] }}
prompts = {{ texts = ["a red circle", "a blue square"], seeds = 2, first_seed = 3 }}
sampling = {{ steps = 4, eta = 1.0, cfg = 2.0 }}
search = {{ candidates = 2, block = 2 }}
"""


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """A folder with base/, first.safetensors, second.safetensors and protocol.toml. Every step adds noise."""
    folder = tmp_path_factory.mktemp("studio")
    pipe = tiny_pipeline()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=False)
    pipe.save_pretrained(folder / "base")
    for seed, name in enumerate(("first", "second"), start=31):
        write_lora(folder / f"{name}.safetensors", random_lora(pipe.unet, seed, size=0.02))
    (folder / "protocol.toml").write_text(PROTOCOL.format(folder=folder))
    return folder


@pytest.fixture(scope="module")
def host(studio):
    return open_host(Evaluation.of(read_protocol([studio / "protocol.toml"])), "cpu")


@pytest.fixture(scope="module")
def whole(studio, tmp_path_factory):
    """The folder of an evaluation that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    assert main(command(studio, out)) == 0
    return out


def command(studio, out, *more):
    return ["evaluate", str(studio / "protocol.toml"), "--device=cpu", f"--out={out}", *more]


def outcome(host, method, preference=(), alignment=1.0, until=1.0, **search):
    point = EvaluationPoint(method, preference, alignment, Search(**search), until)
    return host.run(METHODS[method], point, *PAIRS)


def content(out):
    """The bytes of the Parquet file."""
    return (out / "scores.parquet").read_bytes()


def table_in(out):
    return pyarrow.parquet.read_table(out / "scores.parquet")


def refusal(capsys, *arguments):
    assert main(list(arguments)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("diffusion-blend: ")
    return message


@pytest.mark.parametrize(
    ("method", "search"),
    [("best_of_n", {"candidates": 1}), ("code", {"candidates": 1, "block": 3}), ("rgg", {"gradient_scale": 0.0})],
)
def test_a_search_that_does_not_search_is_the_base_bit_for_bit(host, method, search):
    base = outcome(host, "base")
    assert torch.equal(outcome(host, method, HALF, **search).images, base.images)
    assert torch.equal(outcome(host, "kla", HALF, 0.0).images, base.images)


@pytest.mark.parametrize("method", ["merged", "mpa", "random", "stratified"])
def test_a_one_hot_preference_is_that_basis_bit_for_bit(host, method):
    assert torch.equal(outcome(host, method, FIRST).images, outcome(host, "basis", FIRST).images)


@pytest.mark.parametrize("method", ["oracle", "soup_factors", "export", "distilled"])
def test_one_file_for_a_basis_and_the_soup_of_one_lora_are_that_basis_to_rounding(host, method):
    """A bank of one LoRA joins narrower products than one of two, which a CPU adds up in another order."""
    images, expected = outcome(host, method, FIRST).images, outcome(host, "basis", FIRST).images
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)


def test_the_soup_of_factors_is_a_file_whose_a_and_b_were_averaged_by_hand(studio, host, tmp_path):
    first, second = (load_file(studio / f"{name}.safetensors") for name in ("first", "second"))
    save_file({key: 0.25 * factor + 0.75 * second[key] for key, factor in first.items()}, tmp_path / "soup.safetensors")
    pipe = load_base(str(studio / "base"))
    factors, _ = load_factors(pipe, [tmp_path / "soup.safetensors"])
    one = BlendEvaluation.of("exact", Blend(("soup",), (1.0,)), factors)
    expected = generate(pipe, one, *PAIRS, Sampling(STEPS, 1.0, 2.0))
    soup, merged = outcome(host, "soup_factors", (0.25, 0.75)), outcome(host, "merged", (0.25, 0.75))
    torch.testing.assert_close(soup.images, expected, atol=2e-4, rtol=0)
    assert (soup.images - merged.images).abs().max() > 10 * 2e-4  # the deltas averaged are another network
    assert soup.evaluations == merged.evaluations == STEPS and (soup.kl > 0).all()


@pytest.mark.parametrize(
    ("options", "extra", "message"),
    [
        ({"rank": 3}, {}, "of first and second came: their ranks at .* are 2 and 3"),
        ({}, {"alpha": torch.tensor(1.0)}, "of first and second came: their scales at .* are 1 and 0.5"),
        ({"skip": lambda name: name.endswith("to_q")}, {}, "of first and second came: only one of them changes .*to_q"),
        ({}, {"dora_scale": torch.ones(64, 1)}, r"soup_factors \(second\) needs low-rank .* DoRA came"),
    ],
)
def test_factors_that_have_no_average_are_refused_by_name(studio, tmp_path, options, extra, message):
    pairs = random_lora(tiny_pipeline().unet, 32, size=0.02, **options)
    tensors = load_file(write_lora(tmp_path / "second.safetensors", pairs))
    layer = next(key for key in tensors if "attn1.to_k" in key).partition(".lora_")[0]
    save_file(tensors | {f"{layer}.{role}": tensor for role, tensor in extra.items()}, tmp_path / "second.safetensors")
    loras = [f"first={studio}/first.safetensors", f"second={tmp_path}/second.safetensors"]
    protocol = read_protocol([studio / "protocol.toml"], [f"models.loras={loras}"])
    with pytest.raises(BlendError, match=message):
        open_host(Evaluation.of(protocol), "cpu")


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 1.7])
def test_rlg_is_kla_coefficient_for_coefficient(host, scale):
    for basis in (FIRST, (0.0, 1.0)):
        blend = coefficients_of(host.loras, EvaluationPoint("kla", basis, scale))
        assert rlg_coefficients(basis, scale) == pytest.approx(blend, abs=1e-12)
    assert torch.equal(outcome(host, "rlg", FIRST, scale).images, outcome(host, "kla", FIRST, scale).images)


@pytest.mark.parametrize(
    ("method", "name"),
    [("mpa", "exact"), ("merged", "merged"), ("random", "random"), ("budget", "budget"), ("msdda", "msdda")],
)
def test_the_images_are_those_of_generate_to_rounding(studio, host, method, name):
    pipe = load_base(str(studio / "base"))
    factors, _ = load_factors(pipe, [studio / "first.safetensors", studio / "second.safetensors"])
    sampling = Sampling(STEPS, 0.0 if name == "msdda" else 1.0, 2.0)
    expected = generate(pipe, BlendEvaluation.of(name, Blend(("first", "second"), HALF), factors), *PAIRS, sampling)
    torch.testing.assert_close(outcome(host, method, HALF).images, expected, atol=2e-4, rtol=0)


def test_the_path_kl_is_that_of_the_trainers_and_0_for_the_base(host):
    batch = Batch(host, *PAIRS)
    predict = batch.predictor(host.bank, exact((0.0, *HALF), STEPS, SEEDS * 2))
    expected = rollout(host.chain, batch.noise(), predict, batch.base).kl.sum(0)
    run = outcome(host, "mpa", HALF)
    torch.testing.assert_close(run.kl, expected.double(), rtol=1e-5, atol=0)
    assert (run.kl > 0).all()
    assert outcome(host, "base").kl.tolist() == [0.0] * 4
    assert outcome(host, "best_of_n", HALF).kl is None


def test_a_gradient_step_of_scale_s_costs_half_s_squared_nats_per_dimension(host):
    dimensions = torch.Size(host.base.latent_shape).numel()
    run = outcome(host, "rgg", HALF, gradient_scale=0.2)
    torch.testing.assert_close(run.kl, torch.full((4,), STEPS * 0.2**2 * dimensions / 2).double(), rtol=1e-3, atol=0)


def test_the_best_of_n_is_no_worse_than_the_base_image_by_image(host):
    base, best = outcome(host, "base"), outcome(host, "best_of_n", HALF, candidates=3)
    total = [sum(0.5 * reward for reward in run.scores.values()) for run in (base, best)]
    assert (total[1] >= total[0]).all() and (total[1] > total[0]).any()


@pytest.mark.parametrize("method", ["mpa", "merged", "soup_factors", "random", "budget", "oracle", "export", "rlg"])
def test_after_until_the_base_is_alone_at_one_evaluation_and_no_kl(host, method):
    """Cut before the last two of four steps: the path KL is that of the first two, and the images are others."""
    preference = FIRST if method in ("oracle", "rlg") else HALF
    whole, ended, none = (outcome(host, method, preference, until=until) for until in (1.0, 0.5, 0.0))
    assert (ended.kl < whole.kl).all() and (ended.kl > 0).all() and not torch.equal(ended.images, whole.images)
    assert (none.kl < 1e-6 * whole.kl).all() and none.evaluations == STEPS  # budget's way over x0 rounds
    torch.testing.assert_close(none.images, outcome(host, "base").images, atol=2e-4, rtol=0)


def test_cut_steps_cost_one_evaluation(host):
    spent = {"mpa": 2 * 2 + 2, "merged": 4, "random": 4, "budget": 2 + 1 + 2, "msdda": 2 * 2 + 2}
    assert {method: outcome(host, method, HALF, until=0.5).evaluations for method in spent} == spent


def test_msdda_ends_with_the_bases_steps(host):
    """All etas are 1 here, so that it is DB-MPA."""
    result, expected = (outcome(host, method, HALF, until=0.5).images for method in ("msdda", "mpa"))
    torch.testing.assert_close(result, expected, atol=2e-4, rtol=0)


def test_evaluations_are_counted_without_those_of_the_kl(host):
    spent = {"base": 4, "mpa": 8, "merged": 4, "random": 4, "best_of_n": 8, "msdda": 8, "rgg": 4}
    for method, count in spent.items():
        assert outcome(host, method, HALF, candidates=2).evaluations == count
    # two blocks of two steps, two candidates each; after the first block both are looked at
    assert outcome(host, "code", HALF, candidates=2, block=2).evaluations == 4 * 2 + 2


def test_a_killed_run_goes_on_and_gives_the_same_parquet(studio, tmp_path, whole):
    code = f"""
import os, signal
from diffusion_blend.lab import cli
from diffusion_blend.lab.evaluation import queue
append, done = queue._append, []
def killed(file, line):
    if len(done) == 4:
        with file.open("ab") as stream:
            stream.write(b'{{"pass": 4, "sco')
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(append(file, line))
queue._append = killed
cli.main({command(studio, tmp_path)!r})
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -signal.SIGKILL
    assert sorted(finished(tmp_path)) == [0, 1, 2, 3]
    before = (tmp_path / "passes-0.jsonl").read_bytes()
    assert main(command(studio, tmp_path)) == 0
    kept = before[: before.rfind(b"\n") + 1]
    lines = (tmp_path / "passes-0.jsonl").read_bytes()
    assert lines.startswith(kept)  # nothing is repeated
    assert [json.loads(line)["pass"] for line in lines.splitlines()] == sorted(finished(whole))
    assert content(tmp_path) == content(whole)


def test_two_processes_give_the_parquet_of_one(studio, tmp_path, whole, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert main(command(studio, tmp_path)) == 0
        assert ("has made its share" in capsys.readouterr().out) == (rank == "1")
    assert sorted(file.name for file in tmp_path.glob("passes-*")) == ["passes-0.jsonl", "passes-1.jsonl"]
    assert content(tmp_path) == content(whole)


def test_every_point_has_every_prompt_and_seed_once(studio, whole):
    table = table_in(whole).to_pylist()
    points = [(p.method, p.preference, p.alignment) for p in points_of(read_protocol([studio / "protocol.toml"]))]
    rows = [(row["method"], tuple(row["preference"]), row["alignment"], row["prompt"], row["seed"]) for row in table]
    assert rows == [(*point, prompt, seed) for point in points for prompt in PROMPTS for seed in SEEDS]
    assert [row["image"] for row in table] == list(range(len(table)))
    assert table[0].keys() >= {"reward.brightness", "reward.contrast", "kl", "evaluations"}


def test_the_summary_compares_with_mpa_and_the_oracle_pair_by_pair(whole):
    rows = json.loads((whole / "summary.json").read_text())["rows"]
    seen = {(row["method"], tuple(row["preference"]), row["alignment"]): row for row in rows}
    assert len(seen) == len(rows) == 2 + 2 * 7 + 1 + 3 * 3  # the base with each preference, one distilled, three dials
    assert seen["mpa", HALF, 1.0]["against_mpa"] is None
    assert seen["merged", FIRST, 1.0]["against_mpa"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    base = seen["kla", HALF, 0.0]["against_mpa"]
    assert base == seen["base", HALF, 0.0]["against_mpa"]
    assert base["low"] <= base["mean"] <= base["high"]
    assert seen["base", HALF, 0.0]["weighted"][0] - seen["mpa", HALF, 1.0]["weighted"][0] == pytest.approx(base["mean"])


def test_methods_are_compared_at_equal_path_kl(whole):
    """At a dial's own points nothing is interpolated: at DB-MPA's KL its dial gives DB-MPA's reward."""
    summary = json.loads((whole / "summary.json").read_text())
    rows = {(r["method"], tuple(r["preference"]), r["alignment"]): r for r in summary["rows"]}
    entries = {(entry["of"], entry["method"]): entry for entry in summary["at_kl"]}
    assert {("mpa", "kla"), ("oracle", "oracle_dial")} <= entries.keys()
    for method in ("mpa", "oracle"):
        as_trained, dialled = rows[method, HALF, 1.0], entries[method, {"mpa": "kla", "oracle": "oracle_dial"}[method]]
        assert dialled["kl"] == pytest.approx(as_trained["kl"], rel=1e-12)
        assert dialled["weighted"]["mean"] == pytest.approx(as_trained["weighted"][0], rel=1e-9)
        assert dialled["weighted"]["low"] <= dialled["weighted"]["mean"] <= dialled["weighted"]["high"]
    assert entries["mpa", "kla"]["against_kla"] is None
    for entry in summary["at_kl"]:
        if entry["method"] != "kla" and (entry["of"], "kla") in entries:
            mean, kla = entry["weighted"]["mean"], entries[entry["of"], "kla"]["weighted"]["mean"]
            assert entry["against_kla"]["mean"] == pytest.approx(mean - kla, abs=1e-12)


def test_every_method_of_loras_is_sampled_at_every_until_and_compared_at_equal_kl(studio, tmp_path):
    more = ["--set=untils=[1.0, 0.5]", "--set=methods=['base', 'kla', 'merged_dial', 'oracle']"]
    more += ["--set=alignments=[1.0, 2.0, 16.0]"]
    assert main(command(studio, tmp_path, *more)) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    seen = [row for row in summary["rows"] if row["preference"] == [*HALF]]
    rows = {(row["method"], row["alignment"], row["until"]): row for row in seen}
    dials = [(method, dial, until) for method in ("kla", "merged_dial") for until in (1, 0.5) for dial in (1, 2, 16)]
    assert list(rows) == [("base", 0, 1), *dials, ("oracle", 1, 1), ("oracle", 1, 0.5)]
    assert rows["kla", 1, 1]["against_mpa"] is None  # it is DB-MPA itself
    ended, whole = rows["kla", 1, 0.5], rows["kla", 1, 1]
    assert ended["against_mpa"]["mean"] == pytest.approx(ended["weighted"][0] - whole["weighted"][0])
    entries = {(entry["method"], entry["until"]): entry for entry in summary["at_kl"] if entry["of"] == "mpa"}
    level = rows["kla", 1, 1]["kl"]
    assert entries.keys() == {("kla", 1), ("kla", 0.5), ("merged_dial", 1), ("merged_dial", 0.5)}
    assert all(entry["kl"] == level for entry in entries.values())
    assert entries["kla", 1]["weighted"]["mean"] == pytest.approx(rows["kla", 1, 1]["weighted"][0])
    ended = [rows["kla", alignment, 0.5] for alignment in (1, 2, 16)]
    expected = numpy.interp(level, [row["kl"] for row in ended], [row["weighted"][0] for row in ended])
    assert entries["kla", 0.5]["weighted"]["mean"] == pytest.approx(expected)
    text = (tmp_path / "summary.md").read_text()
    assert "| DB-KLA, until 0.5 | 0.5, 0.5 | 16 |" in text and "MORL oracle, until 0.5" in text
    assert "DB-KLA, until 0.5" in (tmp_path / "report.html").read_text()
    assert set(summary["hypervolumes"]) >= {"base", "DB-KLA", "DB-KLA, until 0.5"}
    page = late_cut.tables_of(summary)
    assert "| DB-KLA | 0.5 | 16 |" in page and f"| method | until | weighted at {level:.1f} nats [95%] |" in page
    widths = {line.count("|") for line in page.splitlines() if line.startswith("| DB-KLA")}
    heads = {line.count("|") for line in page.splitlines() if line.startswith("| method")}
    assert widths == heads and len(heads) == 2


def test_the_runs_of_the_late_cut_can_be_read_and_their_page_has_a_place_for_them():
    for settings in late_cut.RUNS.values():
        protocol = read_protocol(["toy", "toy_late_cut"], settings)
        assert 1.0 in protocol.untils and protocol.alignments[0] == 1.0  # what the others are compared with
        assert {point.until for point in points_of(protocol)} == {*protocol.untils}
    page = (late_cut.DOCS / "results.md").read_text(encoding="utf8")
    assert "<!-- the late cut -->\ntables<!-- end of the late cut -->" in filled(page, "tables", "the late cut")


def test_the_ways_of_a_pair_are_compared_image_by_image(studio, tmp_path):
    settings = (*strengths.EVALUATION[:-1], "models.distilled=[]")
    assert main(command(studio, tmp_path, *(f"--set={setting}" for setting in settings))) == 0
    cubes = strengths.Cubes.read(tmp_path)
    rows = {row["method"]: row for row in cubes.summary["rows"]}
    against, difference = rows["merged"]["against_mpa"], cubes.difference("mpa", "merged")
    assert vars(difference) == pytest.approx(
        {"mean": -against["mean"], "low": -against["high"], "high": -against["low"]}, abs=1e-12
    )
    gain = cubes.difference("merged", "soup_factors").mean
    assert gain == pytest.approx(rows["merged"]["weighted"][0] - rows["soup_factors"]["weighted"][0], abs=1e-12)
    page = strengths.tables_of({"weak": cubes, "strong": cubes})
    assert page.count("| weak | ") == 1 + 6 == page.count("| strong | ")  # the differences, then the rows
    assert "| weak | brightness |" in page and "path KL | colourfulness | evaluations |" in page
    for table in page.split("\n\n")[1:]:
        assert len({line.count("|") for line in table.strip().splitlines()}) == 1


def test_the_strong_loras_settings_and_their_evaluation_can_be_read_and_their_page_has_a_place_for_them():
    for settings in strengths.STRENGTHS.values():
        config = read_config(["toy"], [*settings, "reward.name=toy:calm"])
        check(config)
        assert config.kl_weight < read_config(["toy"]).kl_weight
    protocol = read_protocol(["toy"], strengths.EVALUATION)
    methods = [point.method for point in points_of(protocol)]
    assert methods == ["base", "basis", "basis", "mpa", "merged", "soup_factors"]
    assert len(protocol.prompts.texts) * protocol.prompts.seeds == 64
    pairs = strengths.pairs_of(3)
    assert len({pair.folder for pair in pairs}) == len(pairs) == 1 + 6 * len(strengths.STRENGTHS)
    trained = {file for pair in pairs[1:] for file in pair.loras()}
    assert len(trained) == 3 * 2 * len(strengths.STRENGTHS)  # a pair of two seeds needs no training of its own
    assert [pair.seeds for pair in strengths.pairs_of(1)] == [(0, 0)] * (1 + len(strengths.STRENGTHS))
    what, page = "weak and strong", (late_cut.DOCS / "results.md").read_text(encoding="utf8")
    assert f"<!-- {what} -->\ntables<!-- end of {what} -->" in filled(page, "tables", what)


def test_the_oracles_share_of_itself_is_all_and_of_the_base_nothing(whole):
    rows = json.loads((whole / "summary.json").read_text())["rows"]
    shares = {(r["method"], tuple(r["preference"]), r["alignment"]): r["oracle_share"] for r in rows}
    known = [preference for preference in (FIRST, HALF) if shares["oracle", preference, 1.0] is not None]
    assert known
    for preference in known:
        assert shares["oracle", preference, 1.0] == {"mean": 1.0, "low": 1.0, "high": 1.0}
        assert shares["base", preference, 0.0] == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_costs_are_kept_apart_because_they_differ_from_run_to_run(whole):
    costs = pyarrow.parquet.read_table(whole / "costs.parquet").to_pylist()
    assert sum(row["images"] for row in costs) == table_in(whole).num_rows
    assert all(row["seconds"] > 0 for row in costs)
    assert sys.platform != "linux" or all(row["peak_bytes"] > 10e6 for row in costs)


def test_the_report_has_everything_in_it(whole):
    sources, text = [], (whole / "report.html").read_text()

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            sources.extend(value for name, value in attributes if name in ("src", "href"))

    Reader().feed(text)
    assert len(sources) == 3 + 1 + 2 * 7 + 1 + 3 * 3  # plots, then a picture per point
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert all(METHODS[name].title in text for name in ("base", "mpa", "merged", "stratified", "best_of_n", "kla"))
    assert {"summary.md", "summary.csv", "pareto.png", "alignment.png", "kl.png"} <= {f.name for f in whole.iterdir()}


def test_the_bootstrap_covers_prompts_and_seeds():
    """Where prompts alone differ, the interval is theirs, however many seeds there are."""
    generator = numpy.random.default_rng(1)
    prompts = generator.normal(size=(100, 1))
    interval = Draws(100, 50).mean(prompts + numpy.zeros((1, 50)))
    error = prompts.std() / 10
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert interval.low < interval.mean < interval.high


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("sampling.step=4", "Did you mean sampling.steps"),
        ("methods=['mpa', 'magic']", "expected one of base"),
        ("methods=['mpa', 'control_variate']", "Choose budget, with a budget of 1"),
        ("preferences=[[0.5, 0.6]]", "expected 2 numbers from 0 upwards that sum to 1"),
        ("dial_preferences=[[1.0]]", "expected 2 numbers"),
        ("alignments=[-1.0]", "expected numbers from 0"),
        ("untils=[1.2]", "expected shares of the steps"),
        ("untils=[]", "at least one"),
        ("prompts.seeds=0", "expected 1 or more"),
        ("rewards.names=['brightness']", "1 rewards came for 2 reward LoRAs"),
        ("rewards.names=['brightness', 'brightness']", "each may come once"),
        ("rewards.watch=['contrast']", "each may come once"),
        ("rewards.watch=['toy:nonsense']", "the reward 'toy:nonsense' is unknown"),
        ("models.loras=[]", "says nothing of models.loras"),
        ("models.loras=['first=nowhere', 'second=nowhere']", "is no file"),
        ("models.oracles=['0.3, 0.7=a.safetensors']", "expected one of the protocol's preferences"),
        ("prompts.texts=['a', 'a']", "came twice"),
        ("sampling.steps=3", "expected a divisor"),
    ],
)
def test_unusable_input_is_one_message_and_nothing_is_written(studio, tmp_path, capsys, assignment, message):
    shown = refusal(capsys, *command(studio, tmp_path / "out", f"--set={assignment}"))
    assert message in shown
    assert not (tmp_path / "out").exists()


def test_a_reward_without_gradient_is_refused_for_rgg(studio, tmp_path, capsys):
    more = ["--set=methods=['rgg']", "--set=rewards.names=['brightness', 'jpeg_compressibility']"]
    assert "has no gradient" in refusal(capsys, *command(studio, tmp_path / "out", *more))


def test_a_folder_of_another_evaluation_is_refused(studio, whole, capsys):
    before = content(whole)
    shown = refusal(capsys, *command(studio, whole, "--set=sampling.cfg=3.0"))
    assert "differs in protocol.sampling.cfg" in shown
    assert content(whole) == before


@pytest.mark.parametrize("name", sorted(file.stem for file in PROTOCOLS.glob("*.toml")))
def test_the_protocols_that_ship_can_be_read(name):
    files = [name] if name in ("paper", "toy") else ["paper", name]
    count = {"paper_three": 3, "paper_four": 4}.get(name, 2)
    protocol = read_protocol(files, [f"models.loras={[f'{i}={i}.safetensors' for i in range(count)]}"])
    assert len(protocol.rewards.names) == count
    assert not {*protocol.rewards.names, *protocol.rewards.watch} - known_rewards()
    asked = set(protocol.methods) - (set() if protocol.models.oracles else {"oracle", "oracle_dial"})
    assert {point.method for point in points_of(protocol)} == asked
    with pytest.raises(BlendError, match="says nothing of methods"):
        read_protocol([])


def test_a_watched_score_has_its_column_and_no_weight(studio, tmp_path, whole):
    """The weighted rewards and what follows from them are those of the same evaluation that watches nothing."""
    assert main(command(studio, tmp_path, "--set=rewards.watch=[]")) == 0
    blind, summary = (json.loads((out / "summary.json").read_text()) for out in (tmp_path, whole))
    weighed = ("rewards", "weighted", "against_mpa", "oracle_share")
    for one, other in zip(blind["rows"], summary["rows"], strict=True):
        assert [one[key] for key in weighed] == [other[key] for key in weighed] and one["watched"] == {}
    assert blind["hypervolumes"] == summary["hypervolumes"]
    images = [row for row in table_in(whole).to_pylist() if row["method"] == "mpa" and row["preference"] == [*HALF]]
    scores = [image["reward.colourfulness"] for image in images]
    row = next(row for row in summary["rows"] if row["method"] == "mpa" and row["preference"] == [*HALF])
    assert row["watched"]["colourfulness"][0] == pytest.approx(numpy.mean(scores))
    head = (whole / "summary.md").read_text().split("| method |")[1].splitlines()[0]
    assert "path KL | colourfulness | evaluations" in head and "weighted" in head
    with (whole / "summary.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    shown = next(line for line in lines if (line["method"], line["preference"]) == ("mpa", "0.5, 0.5"))
    assert float(shown["colourfulness mean"]) == row["watched"]["colourfulness"][0]
    assert float(shown["path KL"]) == row["kl"]


def known_rewards():
    return {*reward_cards(), *(f"toy:{name}" for name in {**toy_rewards(), **toy_watched()})}


def test_help_lists_the_settings_without_loading_torch():
    code = "import sys; from diffusion_blend.lab.cli import main; main(['evaluate', '--help'])"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        "search.candidates = 4" in done.stdout
        and "Protocols: msdda, paper, paper_four, paper_three, toy, toy_late_cut, toy_one_file." in done.stdout
    )
    assert done.stdout.rstrip().endswith("False")
