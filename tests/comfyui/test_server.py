"""The pack in a running ComfyUI server, over HTTP: a picture, its repetition, an error, an interrupt."""

import json
import re
import urllib.error
import urllib.parse

import numpy as np
import pytest
import torch
from PIL import Image

from . import host, loras, networks
from .example_models import write_checkpoint
from .server import PACK, Server

NODE_IDS = {
    "DiffusionBlendLoadRewardLoRA",
    "DiffusionBlendModelAsRewardLoRA",
    "DiffusionBlendBlendWeights",
    "DiffusionBlendDuel",
    "DiffusionBlendKLInterpolate",
    "DiffusionBlendSchedule",
    "DiffusionBlendRegion",
    "DiffusionBlendWindow",
    "DiffusionBlendApply",
    "DiffusionBlendApplyLoRAs",
    "DiffusionBlendKSampler",
    "DiffusionBlendStochasticLS",
    "DiffusionBlendDiagnostics",
    "DiffusionBlendMSDDASampler",
    "DiffusionBlendMSDDAKSampler",
    "DiffusionBlendMaximinKSampler",
    "DiffusionBlendLoadRewardModel",
    "DiffusionBlendRewardScorer",
    "DiffusionBlendPickBest",
    "DiffusionBlendSweep",
    "DiffusionBlendSweepGrid",
    "DiffusionBlendParetoPlot",
    "DiffusionBlendSaveLoRA",
}
FORMER_IDS = {"DiffusionBlendModelAsBasis": "DiffusionBlendModelAsRewardLoRA"}
CHECKPOINT, OTHER_CHECKPOINT = "tiny.safetensors", "other.safetensors"
DOCS = host.REPOSITORY / "web" / "docs"


@pytest.fixture(scope="module")
def server_folder(tmp_path_factory):
    """Where the server has its files."""
    return tmp_path_factory.mktemp("server") / "base"


@pytest.fixture(scope="module")
def files(server_folder):
    """Three LoRAs for the network of its checkpoints."""
    model = networks.load(networks.unet()).model
    return [file for _, file in loras.write_three(model, server_folder / "models" / "loras")]


@pytest.fixture(scope="module")
def server(server_folder, files):
    """A server that holds the three LoRAs and two tiny checkpoints."""
    folder = server_folder
    for seed, name in enumerate((CHECKPOINT, OTHER_CHECKPOINT)):
        write_checkpoint(folder / "models" / "checkpoints" / name, seed)
    with Server(folder, options=("--cache-none",)) as running:  # a prompt that comes again is to run again
        yield running


def workflow(files, weights="0.6, 0.4", steps=3) -> dict:
    """Two reward LoRAs, blended and sampled into a picture."""
    nodes = {
        "model": ("CheckpointLoaderSimple", {"ckpt_name": CHECKPOINT}),
        "positive": ("RandomPrompt", {"seed": 1}),
        "negative": ("RandomPrompt", {"seed": 2}),
        "latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "first": _load(files[0]),
        "second": _load(files[1]),
        "weights": (
            "DiffusionBlendBlendWeights",
            {"loras.lora_0": ["first", 0], "loras.lora_1": ["second", 0], "weights": weights, "normalise": True},
        ),
        "dial": ("DiffusionBlendKLInterpolate", {"blend": ["weights", 0], "alignment": 0.8}),
        "sampler": (
            "DiffusionBlendKSampler",
            {
                "model": ["model", 0],
                "blend": ["dial", 0],
                "seed": 3,
                "steps": steps,
                "cfg": 5.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "positive": ["positive", 0],
                "negative": ["negative", 0],
                "latent_image": ["latent", 0],
                "denoise": 1.0,
                "execution": "auto",
            },
        ),
        "decoded": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["model", 2]}),
        "saved": ("SaveImage", {"images": ["decoded", 0], "filename_prefix": "blend"}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def _load(file):
    return "DiffusionBlendLoadRewardLoRA", {"lora_name": file, "label": "", "kl_weight": 0.0, "scale": 0.0}


def pixels(path) -> np.ndarray:
    """A saved picture's values."""
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def picture(server, files):
    """The first picture."""
    return server.picture(workflow(files))


@pytest.mark.skipif(host.DEVICE == "cpu", reason="dynamic VRAM needs a GPU")
def test_a_server_on_a_gpu_has_dynamic_vram(server):
    assert "DynamicVRAM support detected and enabled" in server.log.read_text()


def test_the_pack_loads_without_complaint(server):
    failed = [line for line in server.log.read_text().splitlines() if "IMPORT FAILED" in line]
    assert not [line for line in failed if "custom_nodes" in line], failed
    ours = {name for name in server.get("/object_info") if name.startswith("DiffusionBlend")}
    assert ours == NODE_IDS | FORMER_IDS.keys()


@pytest.mark.parametrize("former", FORMER_IDS)
def test_a_node_under_its_former_id_is_the_same_and_out_of_the_menus(server, former):
    this, now = (server.get(f"/object_info/{name}")[name] for name in (former, FORMER_IDS[former]))
    assert this["deprecated"] and not now.get("deprecated")
    assert {name for name in this if this[name] != now.get(name)} == {"name", "deprecated"}


@pytest.mark.parametrize("node_id", sorted(NODE_IDS))
def test_every_input_and_output_has_a_tooltip(server, node_id):
    node = server.get(f"/object_info/{node_id}")[node_id]
    inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
    assert inputs
    for name, (_, options) in inputs.items():
        slots = options["template"]["input"]["required"].values() if "template" in options else [(None, options)]
        assert all(slot.get("tooltip") for _, slot in slots), name
    assert all(node["output_tooltips"])
    assert node["description"]


def test_a_graph_makes_a_picture(picture):
    assert pixels(picture).shape == (64, 64, 3)
    assert pixels(picture).std() > 1


def test_the_prompt_inside_a_picture_makes_it_again(server, picture):
    graph = json.loads(Image.open(picture).info["prompt"])
    again = server.picture(graph)
    assert again != picture
    assert np.array_equal(pixels(again), pixels(picture))


def test_the_nodes_show_the_formula_and_what_matched(server, files, picture):
    outputs = server.finish(server.queue(workflow(files)))["outputs"]
    assert "0.2 base + 0.48 everything + 0.32 attentive" in "".join(outputs["dial"]["text"])
    assert "modules on SD 1.5" in "".join(outputs["sampler"]["text"])


def test_four_images_are_scored_with_two_rewards_and_the_best_is_saved(server, files):
    graph = workflow(files)
    graph["latent"]["inputs"]["batch_size"] = 4
    more = {
        "first reward": ("DiffusionBlendLoadRewardModel", {"reward_name": "colourfulness"}),
        "second reward": ("DiffusionBlendLoadRewardModel", {"reward_name": "jpeg_compressibility"}),
        "scorer": (
            "DiffusionBlendRewardScorer",
            {
                "image": ["decoded", 0],
                "prompt": "a red fox",
                "rewards.reward_0": ["first reward", 0],
                "rewards.reward_1": ["second reward", 0],
                "weights": "1, 0.5",
            },
        ),
        "best": (
            "DiffusionBlendPickBest",
            {"image": ["decoded", 0], "scores": ["scorer", 0], "k": 1, "latent": ["sampler", 0]},
        ),
        "again": ("VAEDecode", {"samples": ["best", 1], "vae": ["model", 2]}),
        "all": ("SaveImage", {"images": ["scorer", 2], "filename_prefix": "sorted"}),
        "redone": ("SaveImage", {"images": ["again", 0], "filename_prefix": "redone"}),
    }
    graph |= {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in more.items()}
    for name in ("first reward", "second reward"):
        graph[name]["inputs"] |= {"device": "default", "precision": "auto"}
    graph["saved"]["inputs"]["images"] = ["best", 0]
    history = server.finish(server.queue(graph))
    assert history["status"]["status_str"] == "success", history["status"]
    outputs = history["outputs"]
    saved = {
        name: [server.folder / "output" / image["filename"] for image in outputs[name]["images"]]
        for name in ("saved", "all", "redone")
    }
    assert [len(paths) for paths in saved.values()] == [1, 4, 1]
    best, ordered = pixels(saved["saved"][0]), [pixels(path) for path in saved["all"]]
    assert np.array_equal(best, ordered[0])
    # decoded again as a batch of one: rounding may cross the border between two of 256 levels
    assert np.abs(best.astype(int) - pixels(saved["redone"][0])).max() <= 1
    assert not np.array_equal(best, ordered[1])
    rows = re.findall(
        r"image \d: (\S+) +\(colourfulness (\S+), jpeg_compressibility (\S+)\)", "".join(outputs["scorer"]["text"])
    )
    assert len(rows) == 4
    total, colour, size = (list(map(float, column)) for column in zip(*rows, strict=True))
    assert total == sorted(total, reverse=True) and total[0] > total[-1]
    assert total == pytest.approx([c + s / 2 for c, s in zip(colour, size, strict=True)], rel=1e-2)


def test_saved_images_hold_their_own_scores_and_the_count_of_those_that_pass_goes_on(server, files):
    graph = workflow(files)
    graph["latent"]["inputs"]["batch_size"] = 3
    scorer = {"image": ["decoded", 0], "prompt": "", "rewards.reward_0": ["reward", 0], "good_at": "0, 1000"}
    more = {
        "reward": ("DiffusionBlendLoadRewardModel", {"reward_name": "colourfulness"}),
        "scorer": ("DiffusionBlendRewardScorer", scorer),
        "passed": ("PreviewAny", {"source": ["scorer", 6]}),
        "bucket": ("PreviewAny", {"source": ["scorer", 5]}),
        "unscored": ("ImageInvert", {"image": ["scorer", 2]}),
        "inverted": ("SaveImage", {"images": ["unscored", 0], "filename_prefix": "inverted"}),
    }
    graph |= {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in more.items()}
    graph["reward"]["inputs"] |= {"device": "default", "precision": "auto"}
    graph["saved"]["inputs"]["images"] = ["scorer", 2]
    history = server.finish(server.queue(graph, extra_data={"extra_pnginfo": {"workflow": {"nodes": []}}}))
    assert history["status"]["status_str"] == "success", history["status"]
    outputs = history["outputs"]
    assert outputs["passed"]["text"] == ["3"] and outputs["bucket"]["text"] == ["ok"] * 3
    text = "".join(outputs["scorer"]["text"])
    assert text.startswith("3 of 3 pass: great 0, ok 3, bad 0\n")
    shown = [float(total) for total in re.findall(r"image \d: (\S+)", text)]
    rewards = host.submodule("blend_core.rewards")
    weighted_scores = []
    for image in outputs["saved"]["images"]:
        path = server.folder / "output" / image["filename"]
        information = Image.open(path).info
        assert json.loads(information["workflow"]) == {"nodes": []}
        key = rewards.image_key(torch.from_numpy(pixels(path).copy()))
        stored = rewards.stored_scores(information[rewards.KEY], key)
        assert stored.scores == {"colourfulness": stored.weighted} and stored.bucket == "ok"
        weighted_scores.append(stored.weighted)
    assert weighted_scores == pytest.approx(shown, rel=1e-3)
    assert weighted_scores == sorted(weighted_scores, reverse=True)  # best first, as they were saved
    for image in outputs["inverted"]["images"]:  # the same metadata, but of other pixels
        path = server.folder / "output" / image["filename"]
        key = rewards.image_key(torch.from_numpy(pixels(path).copy()))
        assert rewards.stored_scores(Image.open(path).info[rewards.KEY], key) is None


def test_a_wrong_threshold_is_refused_at_the_scorer_before_anything_runs(server, files):
    graph = workflow(files)
    scorer = {"image": ["decoded", 0], "prompt": "", "rewards.reward_0": ["reward", 0], "good_at": "22, 20"}
    graph["reward"] = {"class_type": "DiffusionBlendLoadRewardModel", "inputs": {"reward_name": "brightness"}}
    graph["reward"]["inputs"] |= {"device": "default", "precision": "auto"}
    graph["scorer"] = {"class_type": "DiffusionBlendRewardScorer", "inputs": scorer}
    graph["saved"]["inputs"]["images"] = ["scorer", 2]
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.queue(graph)
    errors = json.loads(refused.value.read())["node_errors"]["scorer"]["errors"]
    assert [error["extra_info"]["input_name"] for error in errors] == ["good_at"]
    assert "expected one finite number" in errors[0]["details"]


def with_a_whole_model(files, **options) -> dict:
    """The same, with the second LoRA put into a model of its own; as a graph of the node's former id."""
    graph, lora = workflow(files), {"lora_name": files[1], "strength_model": 1.0}
    more = {
        "patched": ("LoraLoaderModelOnly", {"model": ["again", 0], **lora}),
        "again": ("CheckpointLoaderSimple", {"ckpt_name": CHECKPOINT}),
        "second": (
            "DiffusionBlendModelAsBasis",
            {"model": ["patched", 0], "label": "merged", "kl_weight": 0.0, **options},
        ),
    }
    return graph | {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in more.items()}


def test_a_lora_in_a_model_of_its_own_is_that_lora(server, files):
    """The base with a LoRA, copied; a kohya file, because ComfyUI's loader does not read the alpha of peft's config."""
    kohya_last = [files[1], files[0]]
    expected = pixels(server.picture(workflow(kohya_last)))
    history = server.finish(server.queue(with_a_whole_model(kohya_last, own_copy=True)))
    assert history["status"]["status_str"] == "success", history["status"]
    (image,) = history["outputs"]["saved"]["images"]
    difference = pixels(server.folder / "output" / image["filename"]).astype(int) - expected
    if host.DEVICE == "cpu":
        assert abs(difference).max() <= 1  # rounding may cross the border between two of 256 levels
    else:  # the model in float16 is rounded after its LoRA is added
        other = pixels(server.picture(workflow(kohya_last, weights="1, 0"))).astype(int) - expected
        assert abs(difference).mean() < abs(other).mean() / 4
    assert re.search(r"merged: a whole model, \d+ MB next to the base", "".join(history["outputs"]["sampler"]["text"]))


def test_a_sweep_runs_the_graph_once_per_blend_and_is_plotted(server, files):
    graph = workflow(files)
    graph["sampler"]["inputs"]["blend"] = ["sweep", 0]
    scores = {f"scores.scores_{i}": [f"scorer {i}", 0] for i in range(2)}
    more = {
        "sweep": ("DiffusionBlendSweep", {"blend": ["weights", 0], "over": "preference", "over.parts": 2}),
        "plot": (
            "DiffusionBlendParetoPlot",
            {"labels": ["sweep", 1], **scores, "names": "colour, size", "image": ["decoded", 0], "reference": ""},
        ),
        "plotted": ("SaveImage", {"images": ["plot", 0], "filename_prefix": "plot"}),
    }
    for i, name in enumerate(("colourfulness", "jpeg_compressibility")):
        loader = {"reward_name": name, "device": "default", "precision": "auto"}
        more[f"reward {i}"] = ("DiffusionBlendLoadRewardModel", loader)
        inputs = {"image": ["decoded", 0], "prompt": "", "rewards.reward_0": [f"reward {i}", 0], "weights": ""}
        more[f"scorer {i}"] = ("DiffusionBlendRewardScorer", inputs)
    graph |= {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in more.items()}
    history = server.finish(server.queue(graph))
    assert history["status"]["status_str"] == "success", history["status"]
    outputs = history["outputs"]
    assert len(outputs["saved"]["images"]) == 3
    assert "everything 0.5, attentive 0.5" in "".join(outputs["sweep"]["text"])
    assert "".join(outputs["plot"]["text"]).startswith("hypervolume ")
    (plotted,) = outputs["plotted"]["images"]
    assert pixels(server.folder / "output" / plotted["filename"]).shape[1] > 400


def test_other_weights_make_another_picture(server, files, picture):
    assert not np.array_equal(pixels(server.picture(workflow(files, "0, 1"))), pixels(picture))


def test_prompts_in_a_row_under_budget_with_other_weights_and_another_model(server, files):
    """Nothing that a run remembers reaches the next: the first prompt, made again at the end, gives its picture."""

    def picture(checkpoint, weights):
        graph = workflow(files, weights, steps=6)
        graph["model"]["inputs"]["ckpt_name"] = checkpoint
        inputs = {name: value for name, value in graph["sampler"]["inputs"].items() if name != "execution"}
        inputs |= {"selection": "budget", "budget": 1.4}
        graph["sampler"] = {"class_type": "DiffusionBlendStochasticLS", "inputs": inputs}
        return pixels(server.picture(graph))

    settings = [(CHECKPOINT, "0.6, 0.4"), (CHECKPOINT, "0.2, 0.8"), (OTHER_CHECKPOINT, "0.6, 0.4")]
    first, second, third = (picture(*setting) for setting in settings)
    assert not np.array_equal(first, second) and not np.array_equal(first, third)
    assert np.array_equal(picture(*settings[0]), first)


def test_a_bad_weight_is_explained_to_the_client(server, files):
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.queue(workflow(files, "-1, 2"))
    errors = json.loads(refused.value.read())["node_errors"]["weights"]["errors"]
    assert any("normalise" in error["details"] for error in errors), errors


def test_a_stack_of_another_pack_alone_gives_the_picture_of_its_loras_in_slots(server, files, picture):
    graph = workflow(files)
    del graph["first"], graph["second"]
    graph["stack"] = {"class_type": "Stacker", "inputs": {"files": "\n".join(files[:2])}}
    inputs = graph["weights"]["inputs"]
    graph["weights"]["inputs"] = {"lora_stack": ["stack", 0], "weights": inputs["weights"], "normalise": True}
    assert np.array_equal(pixels(server.picture(graph)), pixels(picture))


def duel(files, answers) -> dict:
    """The graph above with the first blend of a duel in the place of its weights."""
    graph = workflow(files)
    graph["weights"] = {
        "class_type": "DiffusionBlendDuel",
        "inputs": {
            "loras.lora_0": ["first", 0],
            "loras.lora_1": ["second", 0],
            "answers": answers,
            "noise": 0.05,
            "pairs_seed": 0,
        },
    }
    return graph


def test_a_duel_is_sampled_and_an_answer_that_is_none_is_refused_before_it(server, files):
    history = server.finish(server.queue(duel(files, "A\nB")))
    assert history["status"]["status_str"] == "success", history["status"]
    first, second = history["outputs"]["weights"]["diffusion_blend"][0]["pair"]
    assert first != second and sum(map(float, first.split(", "))) == pytest.approx(1)
    with pytest.raises(OSError) as caught:
        server.queue(duel(files, "maybe"))
    assert "line 1 of the answers is 'maybe'" in caught.value.read().decode()


def test_a_missing_file_is_refused_before_the_graph_runs(server, files):
    with pytest.raises(OSError) as caught:
        server.queue(workflow(["gone.safetensors", files[1]]))
    assert "gone.safetensors is not in models/loras" in caught.value.read().decode()


def test_after_an_interrupt_the_next_prompt_is_as_before(server, files, picture):
    long = server.queue(workflow(files, steps=5000))
    server.wait(lambda: "/5000" in server.log.read_text(), "the first step")
    server.read("/interrupt", {})
    status = server.finish(long)["status"]
    assert "execution_interrupted" in [kind for kind, _ in status["messages"]]
    assert np.array_equal(pixels(server.picture(workflow(files))), pixels(picture))


@pytest.mark.skipif(not DOCS.is_dir(), reason="no help pages in web/docs")
def test_every_node_has_a_help_page_that_is_served(server):
    for node_id in NODE_IDS:
        pages = [page for page in DOCS.rglob("*.md") if node_id in page.relative_to(DOCS).parts[0]]
        assert pages, node_id
        for page in pages:
            place = urllib.parse.quote(page.relative_to(DOCS).as_posix())
            assert server.read(f"/extensions/{PACK}/docs/{place}") == page.read_bytes()


def test_the_subgraphs_stand_in_every_users_menu(server):
    listed = server.get("/global_subgraphs")
    ours = {entry["name"]: key for key, entry in listed.items() if entry["info"]["node_pack"] == f"custom_nodes.{PACK}"}
    files = {path.stem: path for path in (host.REPOSITORY / "subgraphs").glob("*.json")}
    assert set(ours) == set(files) == {"Two rewards and a dial", "Best of four by reward"}
    for name, path in files.items():
        assert server.get(f"/global_subgraphs/{ours[name]}")["data"] == path.read_text(encoding="utf8")
