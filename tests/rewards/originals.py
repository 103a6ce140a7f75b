"""Runs the rewards' original code on small random weights: PYTHONPATH=.venv/originals python originals.py OUT

A process of its own, because the originals need torchvision, an older Pillow and names that transformers has dropped,
and nobody else should meet any of them. OUT receives
- the weights, in the files and spellings in which each reward's authors publish them;
- results.safetensors: images, the originals' scores of them, and their preprocessing of photographs;
- facts.json: prompts, token ids, and the names and shapes of the official files, read off the modules at full size.
"""

import functools
import importlib.util
import io
import itertools
import json
import re
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

OUT = Path(sys.argv[1])
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HEAD_WIDTH, LAYERS = 4, 2  # of the small towers; the number of heads is the official one

# Each photograph with its own prompt; the second is above 77 tokens (and 35), where both sides must cut equally.
PROMPTS = (
    "an astronaut in an orange suit, portrait",
    "a cup of coffee on a wooden table, " + ", ".join(["warm light, steam, spoon"] * 20),
    "Chelsea the CAT: it's close-up, 4k!?",
    "Café Zürich — 東京 🐱 (naïve)",
)
SQUARES = (("astronaut.png", 110, 0), ("coffee.png", 150, 0), ("motorcycle_left.png", 110, 20), ("rocket.jpg", 250, 30))
PHOTOGRAPHS = {  # file, and the part of it: left, top, right, bottom
    "square 512": ("astronaut.png", None),
    "landscape 600 x 400": ("coffee.png", None),
    "landscape 451 x 300": ("chelsea.png", None),
    "landscape 640 x 427": ("rocket.jpg", None),
    "landscape 741 x 500": ("motorcycle_left.png", None),
    "landscape 1000 x 872": ("hubble_deep_field.jpg", None),
    "square 1411": ("retina.jpg", None),
    "portrait 333 x 517": ("hubble_deep_field.jpg", (100, 200, 433, 717)),
    "portrait 200 x 512": ("astronaut.png", (120, 0, 320, 512)),
    "panorama 600 x 100": ("coffee.png", (0, 150, 600, 250)),
    "enlarged from 200 x 200": ("astronaut.png", (120, 0, 320, 200)),
    "enlarged from 180 x 120": ("chelsea.png", (130, 40, 310, 160)),
    "enlarged from 48 x 64": ("chelsea.png", (150, 80, 198, 144)),
    "as it is, 224": ("astronaut.png", (110, 0, 334, 224)),
}
WHOLE = ("landscape 741 x 500", "portrait 333 x 517", "panorama 600 x 100", "square 512")  # scored as they are

Scorer = Callable[[Sequence[Image.Image], Sequence[str]], list[float]]


def import_torchvision() -> None:
    """Import torchvision even where its compiled part does not fit this torch.

    Its transforms are Python; only the import fails, as it annotates compiled operators that are not there. They are
    declared here, and never called.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        source = package("torchvision") / "_meta_registrations.py"
        for operator in sorted(set(re.findall(r'"(torchvision::\w+)"', source.read_text(encoding="utf-8")))):
            torch.library.define(operator, "(Tensor x) -> Tensor")
        import torchvision  # noqa: F401


def package(name: str) -> Path:
    """The package's folder, without importing it."""
    return Path(importlib.util.find_spec(name).submodule_search_locations[0])


def open_folder(name: str, folder: Path) -> None:
    """Make `name` a package whose __init__ is not run: some import trainers, data sets or a window system."""
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(folder)]


def stand_in(name: str, **names) -> None:
    """A module for what an original imports and does not use here."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
    vars(sys.modules[name]).update(names)


def supply_moved_names() -> None:
    """What image-reward (2023) imports from transformers.modeling_utils; the last is gone, and only prunes heads."""
    from transformers import modeling_utils, pytorch_utils

    for name in ("apply_chunking_to_forward", "prune_linear_layer", "find_pruneable_heads_and_indices"):
        if not hasattr(modeling_utils, name):
            setattr(modeling_utils, name, getattr(pytorch_utils, name, None))


def fit_bert() -> None:
    """What image-reward's BERT calls on its base class, and transformers 5 has dropped or changed."""
    from ImageReward.models.BLIP.med import BertPreTrainedModel

    BertPreTrainedModel.init_weights = lambda self: None  # every weight is drawn anew, or none has a value
    if not hasattr(BertPreTrainedModel, "get_head_mask"):
        BertPreTrainedModel.get_head_mask = lambda self, mask, layers: [None] * layers  # no head is masked
    if not hasattr(BertPreTrainedModel, "invert_attention_mask"):
        BertPreTrainedModel.invert_attention_mask = lambda self, mask: -1e4 * (1.0 - mask[:, None, None, :].float())


def randomised(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """`module` in eval mode, every weight drawn anew, also those that start at 0 or 1 and would hide a mix-up.

    Embeddings are small, so that the first norms' epsilon shows in the scores.
    """
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=draw)
            if name.endswith("logit_scale"):
                weight.fill_(4.6)
            elif any(part in name for part in ("embed", "cls_token", "conv1")) and "LayerNorm" not in name:
                weight.copy_(0.02 * noise)
            elif weight.dim() < 2:
                weight.copy_(0.2 * noise + (1.0 if weight.mean() == 1 else 0.0))
            else:
                weight.copy_(noise / weight[0].numel() ** 0.5)
    return module.eval()


def write(state: dict, *place: str) -> None:
    """A file of weights under OUT, pickled or safetensors as its name says."""
    path = OUT.joinpath(*place)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({name: value.clone().contiguous() for name, value in state.items()}, path)
    else:
        torch.save(state, path)


def photograph(file: str, box: tuple[int, int, int, int] | None) -> Image.Image:
    """A photograph that comes with scikit-image, or the part of it in `box`."""
    image = Image.open(package("skimage") / "data" / file).convert("RGB")
    return image.crop(box) if box else image


def clip_vocabulary(folder: Path) -> None:
    """vocab.json and merges.txt, as OpenAI's model has them on the hub, from the table inside open_clip."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    words = [*list(tokenizer.encoder)[:-2], "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in tokenizer.bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")


def small_clip(clip_class: type, name: str, seed: int, **options) -> torch.nn.Module:
    """open_clip's model `name`, with its own number of heads, its towers made narrow and shallow."""
    import open_clip

    config = open_clip.get_model_config(name)
    vision, text = config["vision_cfg"], config["text_cfg"]
    heads = vision["width"] // vision.get("head_width", 64)
    vision |= {"width": heads * HEAD_WIDTH, "head_width": HEAD_WIDTH, "layers": LAYERS}
    text |= {"width": text["heads"] * HEAD_WIDTH, "layers": LAYERS}
    return randomised(clip_class(**config, **options), seed)


def from_parts(kind: type, **parts) -> torch.nn.Module:
    """An object of an original class, its networks given instead of downloaded."""
    made = kind.__new__(kind)
    torch.nn.Module.__init__(made)
    for name, value in parts.items():
        setattr(made, name, value)
    return made.eval()


def as_file(image: Image.Image) -> io.BytesIO:
    """The image as a PNG file, for originals that take a path."""
    file = io.BytesIO()
    image.save(file, "png")
    return file


def clipscore(preprocess: dict) -> Scorer:
    """image-reward's CLIPScore on OpenAI's CLIP-L/14. It reports the cosine; ours is a hundred times that."""
    import open_clip
    from ImageReward.models.CLIPScore import CLIPScore

    network = small_clip(open_clip.CLIP, "ViT-L-14-quickgelu", 1)
    write(network.state_dict(), "clip-vit-large-patch14", "open_clip.safetensors")
    scorer = from_parts(CLIPScore, device="cpu", clip_model=network, preprocess=preprocess["clip"])
    return lambda images, prompts: [100 * scorer.score(p, as_file(i)) for i, p in zip(images, prompts, strict=True)]


def aesthetic(preprocess: dict) -> Scorer:
    """image-reward's AestheticScore, which is improved-aesthetic-predictor, on the same CLIP-L/14."""
    import open_clip
    from ImageReward.models.AestheticScore import MLP, AestheticScore

    network, head = small_clip(open_clip.CLIP, "ViT-L-14-quickgelu", 1), randomised(MLP(768), 2)
    write(head.state_dict(), "aesthetic", "sac+logos+ava1-l14-linearMSE.pth")
    scorer = from_parts(AestheticScore, device="cpu", clip_model=network, preprocess=preprocess["clip"], mlp=head)
    return lambda images, prompts: [scorer.score("", as_file(image)) for image in images]


def aesthetic_v1(preprocess: dict) -> Scorer:
    """simple-aesthetics-predictor's v1, a linear head on transformers' CLIP-L/14."""
    from aesthetics_predictor import AestheticsPredictorV1
    from transformers import CLIPVisionConfig

    network = randomised(AestheticsPredictorV1(CLIPVisionConfig(**tower(16), patch_size=14, projection_dim=768)), 3)
    state = network.state_dict()
    head = {name.removeprefix("predictor."): state.pop(name) for name in list(state) if name.startswith("predictor.")}
    write(state, "aesthetic_v1", "model.safetensors")
    write(head, "aesthetic_v1", "sa_0_4_vit_l_14_linear.pth")

    def score(images, prompts):
        pixels = torch.stack([preprocess["clip"](image) for image in images])
        return network(pixel_values=pixels, return_dict=True).logits.flatten().tolist()

    return score


def tower(heads: int) -> dict[str, int]:
    """Sizes of a small tower, for transformers' configurations."""
    width = heads * HEAD_WIDTH
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
    }


def pickscore(preprocess: dict) -> Scorer:
    """imscore's PickScorer on transformers' CLIP-H/14, as PickScore is published; pixels by the official processor."""
    import transformers
    from imscore.pickscore.model import PickScorer

    class CLIPModel(transformers.CLIPModel):
        """Returns features as transformers 4 did, which imscore expects."""

        def get_image_features(self, **inputs):
            features = super().get_image_features(**inputs)
            return getattr(features, "pooler_output", features)

        def get_text_features(self, **inputs):
            features = super().get_text_features(**inputs)
            return getattr(features, "pooler_output", features)

    vision, text = tower(16) | {"hidden_act": "gelu", "patch_size": 14}, tower(16) | {"hidden_act": "gelu"}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=1024)
    network = randomised(CLIPModel(config), 4)
    write(network.state_dict(), "pickscore", "model.safetensors")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(OUT / "clip-vit-large-patch14"))
    return tensor_scorer(
        PickScorer,
        preprocess["pickscore"],
        model=network,
        processor=lambda text, **options: tokenizer(text, **options),
        crop=torch.nn.Identity(),
    )


def hps(preprocess: dict) -> Scorer:
    """HPSv2's own fork of open_clip's CLIP-H/14 and its own pixels, scored by imscore's HPSv2."""
    import open_clip
    from hpsv2.src.open_clip.model import CLIP
    from imscore.hps.model import HPSv2

    network = small_clip(CLIP, "ViT-H-14", 5, output_dict=True)
    write({"epoch": 0, "name": "HPS", "state_dict": network.state_dict()}, "hpsv2.1", "HPS_v2.1_compressed.pt")
    return tensor_scorer(HPSv2, preprocess["hps"], model=network, tokenizer=open_clip.get_tokenizer("ViT-H-14"))


def tensor_scorer(kind: type, preprocess: Callable, **parts) -> Scorer:
    """An imscore class; its own preprocessing, a rewrite, gives way to the official one."""
    scorer = from_parts(kind, resize=torch.nn.Identity(), normalize=torch.nn.Identity(), **parts)
    return lambda images, prompts: scorer.score(torch.stack([preprocess(i) for i in images]), list(prompts)).tolist()


MED_CONFIG = {  # med_config.json, as ImageReward is published with
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30524,
    "encoder_width": 768,
    "add_cross_attention": True,
}


def bert_vocabulary(folder: Path) -> int:
    """A vocab.txt of a few word pieces; returns their number. BERT's own is not in any package."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["an", "a", "in", "orange", "cup", "of", "coffee", "##naut", "astro", "cat", "the", "light", "spoon"]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *(f"##{c}" for c in letters), *",:!?'-()"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return len(pieces)


def original_imagereward(config: dict) -> torch.nn.Module:
    """image-reward's own ImageReward, for a med_config."""
    from ImageReward import ImageReward as module

    place = OUT / "med_config.json"
    place.write_text(json.dumps(config), encoding="utf-8")
    return module.ImageReward(str(place))


def imagereward(preprocess: dict) -> Scorer:
    """image-reward's ImageReward.score, image and prompt in, its own preprocessing included."""
    from ImageReward.models.BLIP import blip_pretrain
    from ImageReward.models.BLIP.vit import VisionTransformer
    from transformers import BertTokenizer

    pieces = bert_vocabulary(OUT / "imagereward")

    def tokenizer():
        made = BertTokenizer.from_pretrained(str(OUT / "imagereward"))
        made.add_special_tokens({"bos_token": "[DEC]"})
        made.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
        return made

    def vision_tower(vit, image_size, *unused):
        assert vit == "large", "ImageReward is made of the large tower, of 16 heads"
        return VisionTransformer(image_size, 16, embed_dim=16 * HEAD_WIDTH, depth=LAYERS, num_heads=16), 16 * HEAD_WIDTH

    blip_pretrain.init_tokenizer, blip_pretrain.create_vit = tokenizer, vision_tower
    small = {"num_hidden_layers": LAYERS, "intermediate_size": 96, "vocab_size": pieces + 2}
    scorer = randomised(original_imagereward(MED_CONFIG | small), 6)
    write(scorer.state_dict(), "imagereward", "ImageReward.pt")
    return lambda images, prompts: [scorer.score(p, i) for i, p in zip(images, prompts, strict=True)]


def aesthetic_v25(preprocess: dict) -> Scorer:
    """Aesthetic predictor v2.5 by the layout of its published file.

    The package is AGPL-3.0, so that neither it nor a line of it is here: the head's file holds linear layers
    1152-1024-128-64-16-1 named scoring_head.0, 2, 4, 6 and 8, with nothing but dropout between them, applied to
    SigLIP's pooled embedding at unit length.
    """
    from transformers import SiglipVisionConfig, SiglipVisionModel

    network = randomised(SiglipVisionModel(SiglipVisionConfig(**tower(16), image_size=384, patch_size=14)), 7)
    sizes = (16 * HEAD_WIDTH, 1024, 128, 64, 16, 1)
    layers = [randomised(torch.nn.Linear(*pair), 8 + i) for i, pair in enumerate(itertools.pairwise(sizes))]
    head = {f"scoring_head.{2 * i}.{n}": v for i, layer in enumerate(layers) for n, v in layer.state_dict().items()}
    # The published file holds the whole of SigLIP, in which this tower has a prefix that transformers 5 dropped here.
    state = {f"vision_model.{name.removeprefix('vision_model.')}": v for name, v in network.state_dict().items()}
    write(state | {"logit_scale": torch.zeros(1), "logit_bias": torch.zeros(1)}, "aesthetic_v2.5", "model.safetensors")
    write(head, "aesthetic_v2.5", "aesthetic_predictor_v2_5.pth")

    def score(images, prompts):
        value = network(pixel_values=torch.stack([preprocess["siglip"](image) for image in images])).pooler_output
        value = value / value.norm(dim=-1, keepdim=True)
        for layer in layers:
            value = layer(value)
        return value.flatten().tolist()

    return score


def pipelines() -> dict:
    """The originals' preprocessing: PIL image -> (3, size, size), normalised."""
    import open_clip
    import transformers
    from hpsv2.src.open_clip.transform import image_transform as hps_transform
    from ImageReward.ImageReward import _transform

    def of_transformers(name, **options):
        kind = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)  # 4.x: the plain name is PIL
        processor = kind(**options)
        return lambda image: torch.as_tensor(processor(images=image, return_tensors="np")["pixel_values"][0])

    return {
        "clip": open_clip.image_transform(224, is_train=False, mean=CLIP_MEAN, std=CLIP_STD),
        "imagereward": _transform(224),
        "pickscore": of_transformers("CLIPImageProcessor"),
        "hps": hps_transform(224, is_train=False, resize_longest_max=True),
        "siglip": of_transformers("SiglipImageProcessor", size={"height": 384, "width": 384}),
    }


def official_layouts() -> dict[str, dict[str, list[int]]]:
    """Names and shapes of the official files, from the original modules at full size, on the meta device."""
    import open_clip
    import timm
    from hpsv2.src.open_clip.model import CLIP
    from ImageReward.models.BLIP import blip, blip_pretrain

    blip_pretrain.create_vit = blip.create_vit
    linspace, torch.linspace = torch.linspace, functools.partial(torch.linspace, device="cpu")  # the ViT reads it out
    try:
        with torch.device("meta"):
            modules = {
                "imagereward": original_imagereward(MED_CONFIG),
                "hpsv2.1": CLIP(**open_clip.get_model_config("ViT-H-14")),
                "clip-l": open_clip.CLIP(**open_clip.get_model_config("ViT-L-14-quickgelu")),
                "siglip": timm.create_model("vit_so400m_patch14_siglip_384", num_classes=0),
            }
    finally:
        torch.linspace = linspace
    return {name: {n: list(v.shape) for n, v in made.state_dict().items()} for name, made in modules.items()}


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    import_torchvision()
    import open_clip
    from torchvision.transforms.functional import pil_to_tensor

    for name, folder in (
        ("ImageReward", package("ImageReward")),
        ("hpsv2", package("hpsv2")),
        ("hpsv2.src", package("hpsv2") / "src"),
        ("hpsv2.src.open_clip", package("hpsv2") / "src" / "open_clip"),
    ):
        open_folder(name, folder)
    stand_in("fairscale.nn.checkpoint.checkpoint_activations", checkpoint_wrapper=None)  # saves memory in training
    # OpenAI's clip is not on the index; open_clip, which continues it, always truncates.
    stand_in("clip", tokenize=lambda text, truncate: open_clip.tokenize(text))
    supply_moved_names()
    fit_bert()

    preprocess = pipelines()
    clip_vocabulary(OUT / "clip-vit-large-patch14")
    scorers = {
        "clipscore": clipscore(preprocess),
        "aesthetic": aesthetic(preprocess),
        "aesthetic_v1": aesthetic_v1(preprocess),
        "aesthetic_v2.5": aesthetic_v25(preprocess),
        "pickscore": pickscore(preprocess),
        "hpsv2.1": hps(preprocess),
        "imagereward": imagereward(preprocess),
    }
    results = {}
    with torch.no_grad():
        for name, scorer in scorers.items():
            size = 384 if name == "aesthetic_v2.5" else 224
            cut = [photograph(file, (left, top, left + size, top + size)) for file, left, top in SQUARES]
            whole = [photograph(*PHOTOGRAPHS[title]) for title in WHOLE]
            results[f"images/{size}"] = torch.stack([pil_to_tensor(image) for image in cut])
            results[f"scores of squares/{name}"] = torch.tensor(scorer(cut, PROMPTS))
            results[f"scores of photographs/{name}"] = torch.tensor(scorer(whole, PROMPTS))
    for title, (file, box) in PHOTOGRAPHS.items():
        image = photograph(file, box)
        results[f"photographs/{title}"] = pil_to_tensor(image)
        results |= {f"{kind}/{title}": pipeline(image) for kind, pipeline in preprocess.items()}
    save_file({name: value.contiguous() for name, value in results.items()}, OUT / "results.safetensors")
    facts = {
        "prompts": PROMPTS,
        "whole": WHOLE,
        "ids": open_clip.tokenize(list(PROMPTS)).tolist(),
        "layouts": official_layouts(),
    }
    (OUT / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
