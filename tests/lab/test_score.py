"""`diffusion-blend score`, run as a user does, on images written here as ComfyUI writes them."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from diffusion_blend.blend_core.rewards import load_reward
from diffusion_blend.lab.cli import main
from diffusion_blend.lab.scores import run as scoring
from diffusion_blend.lab.scores.image_prompts import graph_prompt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

WORDS = '''
def words(images, prompts):
    """words of the prompt"""
    return [float(len(prompt.split())) for prompt in prompts]
'''


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def graph(text, **more):
    """A plain text-to-image graph in API form. text: of the positive encoder, or a link; more: nodes put in or over."""
    return {
        "3": node("KSampler", seed=1, model=["4", 0], positive=["6", 0], negative=["7", 0], latent_image=["5", 0]),
        "4": node("CheckpointLoaderSimple", ckpt_name="a.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=512, batch_size=1),
        "6": node("CLIPTextEncode", text=text, clip=["4", 1]),
        "7": node("CLIPTextEncode", text="ugly", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", filename_prefix="ComfyUI", images=["8", 0]),
        **{key.removeprefix("n"): value for key, value in more.items()},
    }


def picture(seed, width=24, height=16):
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed)) * (seed + 1) // 8
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def save(path, image, prompt=None):
    """As ComfyUI's SaveImage does: the graph in a text chunk."""
    info = PngInfo()
    if prompt is not None:
        info.add_text("prompt", json.dumps(graph(prompt)))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, pnginfo=info)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Five images, two of them of another size; ComfyUI's prompts say 1, 2... words. No models folder is set."""
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for i in range(5):
        save(tmp_path / "images" / f"{i}.png", picture(i, 32 if i in (1, 2) else 24), " ".join("abcde"[: i + 1]))
    (tmp_path / "words.py").write_text(WORDS)
    return tmp_path / "images"


@pytest.fixture
def words(folder):
    """A reward of one's own that reads the prompt."""
    return str(folder.parent / "words.py")


def record_of(folder):
    return json.loads((folder / "scores.json").read_text(encoding="utf8"))


def scores_of(folder, reward):
    return {image["file"]: image["scores"][reward] for image in record_of(folder)["images"]}


def prompts_of(folder):
    return [image["prompt"] for image in record_of(folder)["images"]]


def rows_of(folder):
    return list(csv.DictReader((folder / "scores.csv").read_text(encoding="utf8").splitlines()))


def score(folder, *more):
    return main(["score", str(folder), "--device=cpu", *more])


def refusal(capsys, *command):
    assert main(["score", *map(str, command)]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("diffusion-blend: ") and "Traceback" not in message
    return message


def tensor(image):
    pixels = torch.tensor(list(image.convert("RGB").tobytes()), dtype=torch.float32) / 255
    return pixels.view(1, image.height, image.width, 3).permute(0, 3, 1, 2)


def test_scores_are_those_of_the_library_whatever_the_batch(folder, tmp_path):
    expected = {}
    for i in range(5):
        expected[f"{i}.png"] = load_reward("sharpness")(tensor(Image.open(folder / f"{i}.png"))).item()
    assert len(set(expected.values())) == 5
    for size in (1, 2, 8):
        out = tmp_path / f"by{size}"
        assert score(folder, "--reward=sharpness", f"--batch-size={size}", f"--out={out}") == 0
        assert scores_of(out, "sharpness") == pytest.approx(expected, rel=1e-5)
    assert sorted(path.name for path in folder.iterdir()) == [f"{i}.png" for i in range(5)]


def test_the_prompts_of_comfyui_reach_the_reward(folder, words):
    assert score(folder, f"--reward={words}") == 0
    assert scores_of(folder, "words.py") == {f"{i}.png": i + 1.0 for i in range(5)}
    assert prompts_of(folder) == ["a", "a b", "a b c", "a b c d", "a b c d e"]


def test_weights_make_a_weighted_score_and_the_table_is_best_first(folder, words, capsys):
    assert score(folder, f"--reward={words}=-1", "--reward=brightness=2.5", "--top=3") == 0
    record, rows = record_of(folder), rows_of(folder)
    brightness = scores_of(folder, "brightness")
    expected = {f"{i}.png": 2.5 * brightness[f"{i}.png"] - (i + 1) for i in range(5)}
    assert {image["file"]: image["weighted"] for image in record["images"]} == pytest.approx(expected)
    assert [row["file"] for row in rows] == list(expected)
    assert list(rows[0]) == ["file", "prompt", "words.py", "brightness", "weighted"]
    assert float(rows[3]["weighted"]) == pytest.approx(expected["3.png"], rel=1e-5)
    values = torch.tensor(list(expected.values()), dtype=torch.float64)
    assert record["weighted"]["mean"] == pytest.approx(values.mean().item())
    assert record["weighted"]["standard_error"] == pytest.approx(values.std().item() / 5**0.5)
    assert record["rewards"]["brightness"]["weight"] == 2.5 and record["rewards"]["brightness"]["differentiable"]
    shown = capsys.readouterr().out
    best = sorted(expected, key=expected.get, reverse=True)[:3]
    assert [line.split()[0] for line in shown.splitlines() if ".png" in line] == best
    assert f"± {record['weighted']['standard_error']:.2g}" in shown


def test_without_weights_the_first_reward_orders_the_table(folder, words, capsys):
    assert score(folder, f"--reward={words}", "--reward=contrast") == 0
    assert "weighted" not in rows_of(folder)[0] and record_of(folder)["weighted"] is None
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if ".png" in line]
    assert [line[0] for line in lines] == [f"{i}.png" for i in (4, 3, 2, 1, 0)]
    assert all(len(line) == 3 for line in lines)


def test_one_image_has_no_standard_error(tmp_path):
    save(tmp_path / "only.png", picture(1))
    assert score(tmp_path, "--reward=brightness") == 0
    assert record_of(tmp_path)["rewards"]["brightness"]["standard_error"] is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prompts.txt", "\ufeffw\n\nw w\nw w w\nw w w w\nw w w w w\n"),
        ("prompts.json", json.dumps({f"{i}.png": " ".join(["w"] * (i + 1)) for i in reversed(range(9))})),
        ("prompts.csv", "prompt,file\n" + "".join(f'"{" ".join(["w"] * (i + 1))}",{i}.png\n' for i in range(5))),
    ],
)
def test_prompts_from_a_file_win_over_metadata(folder, words, tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf8")
    assert score(folder, f"--reward={words}", f"--prompts={tmp_path / name}") == 0
    assert prompts_of(folder) == [" ".join(["w"] * (i + 1)) for i in range(5)]
    assert scores_of(folder, "words.py") == {f"{i}.png": i + 1.0 for i in range(5)}


def test_one_prompt_for_all(folder, words):
    assert score(folder, f"--reward={words}", "--prompt=two words") == 0
    assert set(scores_of(folder, "words.py").values()) == {2.0}


def test_prompts_from_the_record_of_generate_in_each_subfolder(tmp_path, folder, words):
    for name, texts in (("a", ["x", "x y"]), ("b", ["x y z"])):
        images = [{"file": f"{i:05d}.png", "prompt": text, "seed": i} for i, text in enumerate(texts)]
        for image in images:
            save(tmp_path / "runs" / name / image["file"], picture(2))
        record = {"format": 1, "request": {"base": "toy", "prompts": texts}, "images": images}
        (tmp_path / "runs" / name / "generation.json").write_text(json.dumps(record))
    assert score(tmp_path / "runs", f"--reward={words}", "--recursive") == 0
    assert scores_of(tmp_path / "runs", "words.py") == {"a/00000.png": 1, "a/00001.png": 2, "b/00000.png": 3}


def test_webp_and_jpeg_as_comfyui_writes_them(tmp_path, folder, words):
    exif = Image.Exif()
    exif[0x0110] = "prompt:" + json.dumps(graph("three words here"))
    for name in ("a.webp", "b.JPG"):
        (tmp_path / "other").mkdir(exist_ok=True)
        picture(1).save(tmp_path / "other" / name, exif=exif)
    assert score(tmp_path / "other", f"--reward={words}") == 0
    assert prompts_of(tmp_path / "other") == ["three words here"] * 2


def test_images_without_a_prompt_are_named_before_any_weights_are_looked_for(folder, tmp_path, capsys):
    save(folder / "bare.png", picture(3))
    save(folder / "blank.png", picture(3), "  ")
    message = refusal(capsys, folder, "--reward=pickscore")
    assert "pickscore reads the prompt, and 2 of 7 images" in message and "bare.png, blank.png" in message
    assert "--prompt TEXT" in message and "--prompts FILE" in message
    assert score(folder, "--reward=brightness") == 0  # it reads none


def test_missing_weights_are_named_for_all_rewards_before_scoring(folder, capsys):
    message = refusal(capsys, folder, "--reward=brightness", "--reward=aesthetic_v2.5")
    assert "aesthetic_predictor_v2_5.pth: get it from https://" in message
    assert not (folder / "scores.json").exists()


def test_grey_palette_and_opaque_images_become_rgb_exactly(tmp_path):
    rgb = picture(6)
    variants = {
        "grey.png": rgb.convert("L"),
        "palette.png": rgb.quantize(16),
        "opaque.png": rgb.convert("RGBA"),
        "bits.png": rgb.convert("1"),
        "grey_alpha.png": rgb.convert("LA"),
    }
    expected = {}
    for name, image in variants.items():
        save(tmp_path / name, image)
        assert Image.open(tmp_path / name).mode == image.mode != "RGB"
        expected[name] = load_reward("contrast")(tensor(image)).item()
    assert score(tmp_path, "--reward=contrast") == 0
    assert scores_of(tmp_path, "contrast") == pytest.approx(expected, rel=1e-6)
    assert len(set(expected.values())) >= 4


def test_turned_photographs_are_scored_upright(tmp_path):
    half = Image.new("L", (32, 16))
    half.paste(255, (0, 0, 32, 8))  # a mirror image of itself from left to right, as long as it stands upright
    exif = Image.Exif()
    exif[0x0112] = 6
    half.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    assert score(tmp_path, "--reward=symmetry") == 0
    assert scores_of(tmp_path, "symmetry")["a.png"] == pytest.approx(1, abs=1e-4)


def test_images_that_cannot_be_scored_are_all_named_with_a_reason(folder, capsys):
    clear = picture(1).convert("RGBA")
    clear.putpixel((0, 0), (0, 0, 0, 254))
    clear.save(folder / "clear.png")
    palette = picture(1).quantize(8)
    palette.save(folder / "palette.png", transparency=0)
    Image.new("I;16", (8, 8)).save(folder / "deep.png")
    (folder / "text.jpg").write_text("no image")
    picture(1).save(folder / "moving.png", save_all=True, append_images=[picture(2)])
    message = refusal(capsys, folder, "--reward=brightness")
    assert "clear.png, palette.png: transparent" in message
    assert "deep.png: of the mode I;16" in message
    assert "text.jpg: cannot be read" in message
    assert "moving.png: animated" in message
    assert not (folder / "scores.json").exists()


def test_a_damaged_image_is_named_and_finished_scores_are_kept(folder, capsys):
    whole = save(folder / "4.png", picture(4)).read_bytes()
    (folder / "4.png").write_bytes(whole[:-300])  # its head is whole, and all that is read at first
    assert "4.png: cannot be read" in refusal(capsys, folder, "--reward=brightness", "--batch-size=2")
    assert [row["brightness"] != "" for row in rows_of(folder)] == [True, True, True, False, False]


def test_the_reward_names_the_images_it_refuses(folder, tmp_path, capsys):
    (tmp_path / "nan.py").write_text("def nan(images):\n    return images.sum((1, 2, 3)) * float('nan')\n")
    message = refusal(capsys, folder, f"--reward={tmp_path / 'nan.py'}")
    assert "0.png: the reward nan.py gave" in message


def counting(monkeypatch):
    """Count the images read; returns the list of their names."""
    seen, batches = [], scoring.batches

    def counted(items, size):
        for batch, pixels in batches(items, size):
            seen.extend(item.file for item in batch)
            yield batch, pixels

    monkeypatch.setattr(scoring, "batches", counted)
    return seen


def test_only_what_has_changed_is_scored_again(folder, words, monkeypatch):
    seen = counting(monkeypatch)
    arguments = (f"--reward={words}=1", "--reward=brightness=1")
    assert score(folder, *arguments) == 0
    first = record_of(folder)
    assert len(seen) == 10
    assert score(folder, *arguments) == 0
    assert len(seen) == 10 and record_of(folder) == first
    assert score(folder, f"--reward={words}=2", "--reward=brightness=0", "--reward=contrast=0") == 0
    assert seen[10:] == [f"{i}.png" for i in range(5)]  # contrast alone
    assert record_of(folder)["images"][3]["weighted"] == 8.0
    arguments = (f"--reward={words}", "--reward=brightness", "--reward=contrast")
    del seen[:]
    save(folder / "2.png", picture(7), "new words")
    (folder / "1.png").unlink()
    save(folder / "5.png", picture(5), "x")
    assert score(folder, *arguments) == 0
    assert seen == ["2.png", "5.png"] * 3
    assert list(scores_of(folder, "brightness")) == ["0.png", "2.png", "3.png", "4.png", "5.png"]
    del seen[:]
    assert score(folder, *arguments, "--prompt=x y z") == 0
    assert len(seen) == 5 and set(scores_of(folder, "words.py").values()) == {3.0}
    del seen[:]
    (folder.parent / "words.py").write_text(WORDS.replace("len(", "-len("))
    assert score(folder, *arguments, "--prompt=x y z") == 0
    assert len(seen) == 5 and set(scores_of(folder, "words.py").values()) == {-3.0}
    del seen[:]
    assert score(folder, *arguments, "--prompt=x y z", "--dtype=bfloat16") == 0
    assert len(seen) == 15


def test_ctrl_c_keeps_finished_scores_and_the_same_command_goes_on(folder, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        batches = scoring.batches

        def interrupted(items, size):
            for i, batch in enumerate(batches(items, size)):
                if i == 2:
                    raise KeyboardInterrupt
                yield batch

        patch.setattr(scoring, "batches", interrupted)
        assert score(folder, "--reward=brightness=1", "--batch-size=1") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert list(scores_of_done(folder)) == ["0.png", "1.png"]
    seen = counting(monkeypatch)
    assert score(folder, "--reward=brightness=1", "--batch-size=1") == 0
    assert seen == ["2.png", "3.png", "4.png"]
    assert len(scores_of_done(folder)) == 5


def scores_of_done(folder):
    return {image["file"]: image["weighted"] for image in record_of(folder)["images"] if image["scores"]}


def test_scores_of_other_rewards_and_strangers_files_are_not_overwritten(folder, tmp_path, capsys):
    assert score(folder, "--reward=brightness", "--reward=contrast") == 0
    before = (folder / "scores.json").read_bytes()
    message = refusal(capsys, folder, "--reward=contrast")
    assert "scores of brightness too" in message and "--out" in message
    assert (folder / "scores.json").read_bytes() == before
    for name, content in (("scores.json", "[]"), ("scores.json", '{"rewards": {}}'), ("scores.csv", "mine")):
        out = tmp_path / f"out{len(content)}"
        out.mkdir()
        (out / name).write_text(content)
        assert "is not of this program" in refusal(capsys, folder, "--reward=contrast", f"--out={out}")
        assert [path.read_text() for path in out.iterdir()] == [content]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no reward came. Give --reward NAME"),
        (["--reward=colorfulness"], "Did you mean colourfulness?"),
        (["--reward=vila"], "vila has no PyTorch weights"),
        (["--reward=brightness=much"], "'much' is no weight"),
        (["--reward=brightness=nan"], "'nan' is no weight"),
        (["--reward=brightness="], "'' is no weight"),
        (["--reward=brightness", "--reward=brightness"], "the reward brightness came twice"),
        (["--reward=brightness=1", "--reward=contrast"], "brightness came with a weight, contrast without"),
        (["--reward=nowhere.py"], "nowhere.py is no file"),
        (["--reward=brightness", "--prompts=nowhere.txt"], "nowhere.txt is no file"),
        (["--reward=brightness", "--prompts=nowhere.csv"], "nowhere.csv holds no prompts"),
        (["--reward=brightness", "--prompt=a", "--prompts=b.txt"], "both --prompt and --prompts"),
        (["--reward=brightness", "--dtype=int8"], "expected one of float32, float16, bfloat16"),
        (["--reward=brightness", "--scale=mine"], "the scale 'mine' is unknown"),
        (["--reward=brightness", "--device=tpu"], "expected auto, cpu or cuda"),
    ],
)
def test_unusable_options_are_one_message_and_nothing_is_written(folder, capsys, options, message):
    assert message in refusal(capsys, folder, *options)
    assert not (folder / "scores.json").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "one\ntwo\n", "2 prompts for 5 images"),
        ("p.json", '{"0.png": 3}', "a prompt is not text"),
        ("p.json", "[1]", "holds no prompts"),
        ("p.json", "{", "holds no prompts"),
        ("p.csv", "name,text\na,b\n", "holds no prompts"),
        ("p.csv", "file,prompt\n0.png\n", "a prompt is not text"),
        ("p.json", '{"0.png": "a", "1.png": "b", "3.png": "c", "4.png": "d"}', "1 of 5 images"),
    ],
)
def test_unusable_prompt_files(folder, words, tmp_path, capsys, name, content, message):
    (tmp_path / name).write_text(content)
    assert message in refusal(capsys, folder, f"--reward={words}", f"--prompts={tmp_path / name}")


def test_a_prompt_file_in_another_encoding(folder, tmp_path, capsys):
    (tmp_path / "p.txt").write_bytes("Käse\n".encode("latin-1") * 5)
    assert "is not UTF-8" in refusal(capsys, folder, "--reward=brightness", f"--prompts={tmp_path / 'p.txt'}")


def test_folders_without_images(tmp_path, capsys):
    assert "no folder came" in refusal(capsys, "--reward=brightness")
    assert "is no folder" in refusal(capsys, tmp_path / "nowhere", "--reward=brightness")
    save(tmp_path / "below" / "a.png", picture(1))
    (tmp_path / ".hidden.png").write_text("not an image")
    assert "holds no images" in refusal(capsys, tmp_path, "--reward=brightness")
    assert score(tmp_path, "--reward=brightness", "--recursive") == 0
    assert list(scores_of(tmp_path, "brightness")) == ["below/a.png"]


def test_a_scale_changes_scores_and_range(folder, tmp_path):
    assert score(folder, "--reward=jpeg_incompressibility") == 0
    assert score(folder, "--reward=jpeg_incompressibility", "--scale=flow-grpo", f"--out={tmp_path / 'o'}") == 0
    plain, scaled = (scores_of(place, "jpeg_incompressibility") for place in (folder, tmp_path / "o"))
    assert scaled == pytest.approx({file: value / 500 for file, value in plain.items()})
    card = record_of(tmp_path / "o")["rewards"]["jpeg_incompressibility"]
    assert card["usual_range"] == pytest.approx([0.02, 0.3])


def test_list_shows_every_reward_whole_in_80_columns(folder, tmp_path, capsys, monkeypatch):
    from diffusion_blend.blend_core.rewards import reward_cards

    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.py").write_text(WORDS.replace("words of the prompt", "mine alone"))
    (tmp_path / "models" / "broken.py").write_text("1 / 0")
    assert main(["score", "--list", f"--models={tmp_path / 'models'}", f"--reward={tmp_path / 'words.py'}"]) == 0
    shown = capsys.readouterr().out
    heads = {line.split()[0] for line in shown.splitlines() if line.strip()}
    assert set(reward_cards()) <= heads and "mine.py" in heads and str(tmp_path / "words.py") in heads
    for card in reward_cards().values():
        assert all(file.page in shown and file.filename in shown for file in card.files)
        assert card.licence in shown or not card.files
    assert "mine alone" in shown and "broken.py cannot be run: ZeroDivisionError" in shown
    assert "…" not in shown
    assert main(["score", "--list", "--models=nowhere"]) == 0
    table = capsys.readouterr().out.split("Licences")[0].splitlines()
    assert max(map(len, table)) <= 80
    pickscore = next(line.split() for line in table if "pickscore" in line)
    assert pickscore[0] == "pickscore" and pickscore[-5:] == ["17", "to", "24", "yes", "yes"]


def test_a_reward_in_the_models_folder_is_found_by_its_file_name(folder, tmp_path, words):
    assert score(folder, "--reward=words.py=1", f"--models={tmp_path}") == 0
    assert scores_of(folder, "words.py")["2.png"] == 3.0
    for home in ("other", "home/comfy/ComfyUI"):  # COMFYUI_PATH, and where comfy-cli puts it
        place = tmp_path / home / "models" / "reward_models"
        place.mkdir(parents=True)
        os.rename(words, place / "words.py")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COMFYUI_PATH", str(tmp_path / "other"))
            assert score(folder, "--reward=words.py=1") == 0
        words = place / "words.py"


def test_rewards_of_other_packages_are_listed_and_scored_anew_each_time(folder, tmp_path, monkeypatch, capsys):
    facts = tmp_path / "site" / "others-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[diffusion_blend.rewards]\nothers = others_rewards:words\n")
    (tmp_path / "site" / "others_rewards.py").write_text(WORDS)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert main(["score", "--list"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["others"])
    assert line.split()[-2:] == ["yes", "-"]  # reads the prompt, no gradient
    seen = counting(monkeypatch)
    for times in (1, 2):  # its code may have changed between
        assert score(folder, "--reward=others=1") == 0
        assert scores_of(folder, "others")["4.png"] == 5.0 and len(seen) == 5 * times


def test_odd_file_names_are_shown_as_they_are(tmp_path, capsys):
    names = ["[bold]a.png", "[x] b.png", "ü" * 60 + ".png"]
    for i, name in enumerate(names):
        save(tmp_path / name, picture(i))
    assert score(tmp_path, "--reward=brightness") == 0
    shown = capsys.readouterr().out
    assert all(name in shown.replace("\n", "") for name in names[:2])
    assert shown.count("ü") == 60
    assert [row["file"] for row in rows_of(tmp_path)] == sorted(names)


def test_help_answers_without_loading_torch():
    code = "import sys; from diffusion_blend.lab.cli import main; main(['score', '--help'])"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("False")


FLUX = {
    "1": node("CLIPTextEncodeFlux", clip_l="tags", t5xxl="a long text", guidance=3.5, clip=["9", 0]),
    "2": node("FluxGuidance", guidance=3.5, conditioning=["1", 0]),
    "3": node("BasicGuider", model=["8", 0], conditioning=["2", 0]),
    "4": node("SamplerCustomAdvanced", noise=["5", 0], guider=["3", 0], latent_image=["6", 0]),
    "5": node("RandomNoise", noise_seed=1),
    "6": node("EmptyLatentImage", width=8),
    "7": node("SaveImage", filename_prefix="a", images=["4", 0]),
    "8": node("UNETLoader", unet_name="a"),
    "9": node("DualCLIPLoader", clip_name1="a"),
}
KSAMPLER = {"model": ["4", 0], "negative": ["7", 0], "latent_image": ["5", 0]}


@pytest.mark.parametrize(
    ("graph", "prompt"),
    [
        (graph("a cat"), "a cat"),
        (graph("  a cat\n"), "a cat"),
        (graph(["20", 0], n20=node("PrimitiveString", value="a dog")), "a dog"),
        (graph(["20", 0], n20=node("ShowText", text=["21", 0]), n21=node("Text", string="a dog")), "a dog"),
        (graph(["20", 0], n20=node("Reroute", **{"": ["21", 0]}), n21=node("Text", text="a dog")), "a dog"),
        (
            graph(["20", 0], n20=node("StringConcatenate", string_a="a", string_b=["21", 0], delimiter=" "))
            | {"21": node("PrimitiveStringMultiline", value="fox")},
            "a fox",
        ),
        (FLUX, "a long text"),
        (FLUX | {"1": node("CLIPTextEncodeFlux", clip_l="tags", t5xxl="", clip=["9", 0])}, "tags"),
        (graph("") | {"6": node("CLIPTextEncodeSDXL", text_g="big", text_l="big", width=8)}, "big"),
        (graph("") | {"6": node("Efficient Loader", positive="packed", negative="ugly")}, "packed"),
        (
            graph("a cat", n3=node("KSampler", **KSAMPLER, positive=["20", 0]))
            | {"20": node("ControlNetApplyAdvanced", positive=["6", 0], negative=["7", 0], image=["21", 0])}
            | {"21": node("LoadImage", image="x.png")},
            "a cat",
        ),
        (
            graph(
                "a cat", n3=node("KSampler", **KSAMPLER, positive=["20", 0]), n21=node("CLIPTextEncode", text="a hat")
            )
            | {"20": node("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["21", 0])},
            "a cat, a hat",
        ),
        (  # the same prompt twice, and a ControlNet on the negative side alone
            graph("a cat", n3=node("KSampler", **KSAMPLER | {"negative": ["20", 0]}, positive=["6", 0]))
            | {"20": node("ControlNetApply", conditioning=["7", 0])}
            | {"30": node("KSampler", **KSAMPLER | {"latent_image": ["3", 0]}, positive=["6", 0])}
            | {"8": node("VAEDecode", samples=["30", 0])},
            "a cat",
        ),
        (graph("a cat", n30=node("KSampler", positive=["31", 0]), n31=node("CLIPTextEncode", text="unused")), "a cat"),
        (graph("a cat", n9=node("PreviewImage", images=["8", 0])), "a cat"),
        (  # two stages that differ: it is not for us to choose
            graph("a cat", n31=node("CLIPTextEncode", text="a dog"), n8=node("VAEDecode", samples=["30", 0]))
            | {"30": node("KSampler", **KSAMPLER | {"latent_image": ["3", 0]}, positive=["31", 0])},
            None,
        ),
        (graph(["20", 0], n20=node("LanguageModel", prompt="write me a prompt", model=["4", 0])), None),
        (graph(""), None),
        (graph(["99", 0]), None),
        (graph(["20", 0], n20=node("Text", text=["20", 0])), None),
        (graph(["20", 0], n20=node("Text", text=["21", 0]), n21=node("Text", text=["20", 0])), None),
        (graph("", n6=node("FluxGuidance", conditioning=["20", 0]), n20=node("Set", conditioning=["6", 0])), None),
        (graph("", n6=node("FluxGuidance", conditioning=["6", 0])), None),
        ({"1": node("A", x=["2", 0]), "2": node("B", y=["1", 0])}, None),
        ({"1": node("LoadImage", image="x.png"), "2": node("SaveImage", filename_prefix="a", images=["1", 0])}, None),
        ({"1": None, "2": {"inputs": None}, "3": {"inputs": {"positive": [[], 0]}}, "4": 4}, None),
        ({}, None),
        ([], None),
        ("text", None),
        (None, None),
    ],
)
def test_the_prompt_of_a_graph(graph, prompt):
    assert graph_prompt(graph) == prompt


def test_tangled_graphs_are_read_in_no_time():
    wide = graph(["100", 0])
    for i in range(100, 160):
        ends = {"string_a": [str(i + 1), 0], "string_b": [str(i + 1), 0]}
        wide[str(i)] = node("StringConcatenate", delimiter=" ", **ends)
        wide[str(i + 200)] = node(
            "ConditioningCombine", conditioning_1=[str(i + 201), 0], conditioning_2=[str(i + 201), 0]
        )
    wide["160"], wide["360"] = node("Text", value="deep"), wide["6"]
    wide["3"]["inputs"]["positive"] = ["300", 0]
    assert graph_prompt(wide) == "deep"


def test_metadata_of_other_programs_is_no_prompt(tmp_path, folder, words, capsys):
    for i, text in enumerate(("a cat", "{", "[" * 100_000, '{"1": 2}', json.dumps(json.dumps(graph("a"))))):
        info = PngInfo()
        info.add_text("prompt", text)
        (tmp_path / "odd").mkdir(exist_ok=True)
        picture(1).save(tmp_path / "odd" / f"{i}.png", pnginfo=info)
    assert "5 of 5 images" in refusal(capsys, tmp_path / "odd", f"--reward={words}")
