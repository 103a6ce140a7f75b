"""Scoring images with rewards, and keeping the best."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from comfy_api.latest import io
from torch import Tensor

from ..blend_core import BlendError
from ..blend_core.blend import parse_weights
from ..blend_core.rewards import (
    BUCKETS,
    SCALES,
    Thresholds,
    as_bytes,
    check_images,
    image_key,
    installed_rewards,
    needed_files,
    reward_cards,
    store_scores,
    stored_entries,
    weighted,
)
from .host.interface import blocked, image_metadata, progress_of
from .host.reward_models import DEVICES, PRECISIONS, RewardModel, library, load_reward_model, own_rewards
from .inputs import CATEGORY, rewards_input
from .output import CACHED_TOO, shown
from .types import RewardModelSocket


class LoadRewardModel(io.ComfyNode):
    """One reward, ready to score."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="DiffusionBlendLoadRewardModel",
            display_name="Load Reward Model",
            category=CATEGORY,
            description="Loads what scores images: formulas such as colourfulness, or learned rewards such as "
            "PickScore.",
            search_aliases=["reward model", "aesthetic", "pickscore", "imagereward", "hps", "clip score", "scorer"],
            **CACHED_TOO,
            inputs=[
                io.Combo.Input(
                    "reward_name",
                    options=[*reward_cards(), *installed_rewards(), *own_rewards()],
                    tooltip="colourfulness to jpeg_incompressibility need no files; the learned ones look for theirs "
                    "in models/reward_models and say what is missing. A .py file put there is a reward of your own.",
                ),
                io.Combo.Input(
                    "device",
                    options=list(DEVICES),
                    advanced=True,
                    tooltip="default: the graphics card, where ComfyUI manages it. cpu: slower, but takes none of the "
                    "card's memory.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    advanced=True,
                    tooltip="Of the weights. auto: float16 where the device is good at it, float32 elsewhere. Scores "
                    "are computed in float32 at the end in any case.",
                ),
                io.Combo.Input(
                    "scale",
                    options=list(SCALES),
                    optional=True,
                    advanced=True,
                    tooltip="none: the reward's own scores. diffusion-blend and flow-grpo rescale some rewards as "
                    "those papers do, so that weighted sums of different rewards can be compared with theirs.",
                ),
                io.Boolean.Input(
                    "allow_download",
                    default=False,
                    optional=True,
                    tooltip="Off: missing files are named, with the place to put them. On: they are fetched (up to 4 "
                    "GB), with a progress bar in ComfyUI's console.",
                ),
            ],
            outputs=[RewardModelSocket.Output(display_name="reward_model", tooltip="Connect to Reward Scorer.")],
        )

    @classmethod
    def execute(
        cls, reward_name: str, device: str, precision: str, scale: str = "none", allow_download: bool = False
    ) -> io.NodeOutput:
        """Load, and show what the reward says of itself."""
        name = str(own_rewards().get(reward_name, reward_name))
        model = load_reward_model(name, device, precision, scale, allow_download)
        card = model.reward.card
        lines = [
            f"{card.name}: {card.measures}",
            "usual range not stated"
            if card.usual_range is None
            else "usual range {:g} to {:g}".format(*card.usual_range),
            "reads the prompt" if card.reads_prompt else "does not read the prompt",
            f"licence: {card.licence}",
        ]
        return shown("\n".join(lines), model)

    @classmethod
    def fingerprint_inputs(cls, reward_name: str, **_) -> tuple:
        """Changes when the file of a reward of the user's own does."""
        file = own_rewards().get(reward_name)
        return (reward_name, file and file.stat().st_mtime_ns)

    @classmethod
    def validate_inputs(cls, reward_name: str | None = None, allow_download: bool | None = False) -> bool:
        """Refuse a reward whose files are missing before anything runs; None where a link brings a value.

        Raises BlendError, since ComfyUI would put an answer to each of the two inputs.
        """
        card = None if reward_name is None else reward_cards().get(reward_name)
        if reward_name is not None and card is not None and allow_download is False:
            needed_files(card, library(download=False))
        return True


class RewardScorer(io.ComfyNode):
    """Scores of a batch under one or more rewards."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="DiffusionBlendRewardScorer",
            display_name="Reward Scorer",
            category=CATEGORY,
            description="Scores images with one or more rewards and sorts them, best first; a threshold "
            "counts the good.",
            search_aliases=["score", "score image", "rank images", "best of", "aesthetic score", "reward", "threshold"],
            **CACHED_TOO,
            hidden=[io.Hidden.extra_pnginfo],
            is_input_list=True,
            inputs=[
                io.Image.Input("image", tooltip="The images to score: a batch, or a list of images of one size."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    tooltip="What the images were to show: one text for all, or a list with one per image. Rewards "
                    "that do not read it ignore it; for the others it may not be empty.",
                ),
                rewards_input("A reward model; a new slot appears with each one you connect."),
                io.String.Input(
                    "weights",
                    default="",
                    optional=True,
                    tooltip="One number per reward, in the order of the slots, taken as they are; a negative one "
                    "counts against an image. Empty: equal shares. Rewards have different scales: see their usual "
                    "ranges.",
                ),
                io.String.Input(
                    "good_at",
                    default="",
                    optional=True,
                    tooltip="The weighted score from which an image passes. Two numbers, the lower one first, such as "
                    "20, 22: it passes as ok from the first, as great from the second. Empty: no thresholds.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="scores",
                    is_output_list=True,
                    tooltip="The weighted score of each image, in the order they came. Connect to Pick Best.",
                ),
                io.Float.Output(display_name="weighted_score", tooltip="The mean of those scores over all images."),
                io.Image.Output(display_name="image", tooltip="The images, best first."),
                io.Int.Output(display_name="best_index", tooltip="Which image is best; 0 is the first that came."),
                io.String.Output(
                    display_name="table", tooltip="Every reward's score of every image as a Markdown table."
                ),
                io.String.Output(
                    display_name="buckets",
                    is_output_list=True,
                    tooltip="great, ok or bad for each image, in the order they came. Needs good_at.",
                ),
                io.Int.Output(display_name="passed", tooltip="How many images are ok or great. Needs good_at."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: list[Tensor],
        prompt: list[str],
        rewards: dict[str, list[RewardModel]],
        weights: Sequence[str] = ("",),
        good_at: Sequence[str] = ("",),
    ) -> io.NodeOutput:
        """Score, show the table, and leave the scores in the metadata of images that are saved from here on."""
        thresholds = Thresholds.of(good_at[0])
        models = [slot[0] for slot in rewards.values() if slot and slot[0] is not None]
        shares = parse_weights(weights[0], len(models), "reward")
        batch = one_batch(image)
        pixels = batch.movedim(-1, 1)
        check_images(pixels)
        progress = progress_of(len(models) * len(pixels))
        scores = []
        for model in models:
            parts = []
            for part in model.scores(pixels, prompt):
                parts.append(part)
                progress(len(part))
            scores.append(torch.cat(parts))
        total = weighted(scores, shares)
        order = ranking(total)
        names = [model.name for model in models]
        rows = score_rows(names, scores, total, order)
        buckets = [thresholds and thresholds.bucket(score) for score in total.tolist()]
        metadata = image_metadata(cls)
        if metadata is not None:
            entries = stored_entries(names, scores, total, buckets)
            store_scores(metadata, entries, [image_key(image) for image in as_bytes(batch)])
        outputs = total.tolist(), total.mean().item(), batch[order], order[0], as_markdown(rows)
        if thresholds is None:
            off = blocked("Reward Scorer has no threshold. Write one into its good_at.")
            return shown(as_lines(rows), *outputs, off, off, editor={"scores": rows})
        counts = ", ".join(f"{bucket} {buckets.count(bucket)}" for bucket in BUCKETS)
        passed = len(buckets) - buckets.count("bad")
        text = f"{passed} of {len(buckets)} pass: {counts}\n{as_lines(rows)}"
        return shown(text, *outputs, buckets, passed, editor={"scores": rows})

    @classmethod
    def validate_inputs(cls, good_at: Sequence[str | None] = ("",), rewards: dict | None = None) -> bool | str:
        """Refuse wrong thresholds before anything runs; None where a link brings them.

        rewards: ComfyUI hands growing inputs over whether asked or not.
        """
        try:
            Thresholds.of(good_at[0] or "")
        except BlendError as error:
            return str(error)
        return True


class PickBest(io.ComfyNode):
    """The images with the highest scores."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return io.Schema(
            node_id="DiffusionBlendPickBest",
            display_name="Pick Best",
            category=CATEGORY,
            description="Keeps the k images with the highest scores, best first, and their latents.",
            search_aliases=["best of n", "top k", "select best", "filter images"],
            is_input_list=True,
            inputs=[
                io.Image.Input("image", tooltip="The images that were scored, in the same order."),
                io.Float.Input("scores", force_input=True, tooltip="One score per image, from Reward Scorer."),
                io.Int.Input("k", default=1, min=1, max=4096, tooltip="How many to keep. More than there are: all."),
                io.Latent.Input("latent", optional=True, tooltip="The latents of the images, to go on with the best."),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The k best images, best first."),
                io.Latent.Output(display_name="latent", tooltip="Their latents, where latents are connected."),
            ],
        )

    @classmethod
    def execute(
        cls, image: list[Tensor], scores: list[float], k: list[int], latent: list[dict] | None = None
    ) -> io.NodeOutput:
        """Pick."""
        batch = one_batch(image)
        if len(scores) != len(batch):
            raise BlendError(
                f"{len(scores)} scores came for {len(batch)} images. Connect the image and the scores of one Reward "
                "Scorer: the images as they went into it, not its sorted ones."
            )
        best = ranking(torch.tensor(scores))[: k[0]]
        if latent is None or latent[0] is None:
            return io.NodeOutput(batch[best], blocked("Pick Best has no latent connected."))
        return io.NodeOutput(batch[best], _picked(latent, best, len(batch)))


def one_batch(images: list[Tensor]) -> Tensor:
    """A list of IMAGEs (batch, height, width, channels) as one. Raises BlendError where their sizes differ."""
    sizes = {tuple(image.shape[1:]) for image in images}
    if len(sizes) > 1:
        listed = ", ".join(f"{width} x {height}" for height, width, *_ in sorted(sizes))
        raise BlendError(
            f"the images of the list have different sizes or channels ({listed}). Scale them to one size first, or "
            "score each size apart."
        )
    return torch.cat(images) if len(images) > 1 else images[0]


def ranking(scores: Tensor) -> list[int]:
    """Indices of scores (batch,), highest first; equal ones stay in their order."""
    return scores.argsort(descending=True, stable=True).tolist()


def score_rows(names: list[str], scores: list[Tensor], total: Tensor, order: list[int]) -> list[list[str]]:
    """A heading, and one row per image, best first: its number (from 0), each reward's score, the weighted score."""
    rows = [[str(i), *(_number(column[i].item()) for column in (*scores, total))] for i in order]
    return [["image", *names, "weighted"], *rows]


def _number(score: float) -> str:
    return f"{score:.0f}" if abs(score) >= 1000 else f"{score:.4g}"


def as_markdown(rows: list[list[str]]) -> str:
    """The rows as a Markdown table."""
    lines = [rows[0], ["---:"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_lines(rows: list[list[str]]) -> str:
    """The rows as lines that name each number: a node shows plain text in a font without columns."""
    (_, *names, _), *images = rows
    return "\n".join(
        f"image {image}: {total}   ({', '.join(f'{name} {score}' for name, score in zip(names, scores, strict=True))})"
        for image, *scores, total in images
    )


def _picked(latents: list[dict], best: list[int], images: int) -> dict:
    """The latent of the best images, with what a LATENT carries per image."""
    samples = [latent["samples"] for latent in latents]
    nested = not all(isinstance(latents_of_one, Tensor) for latents_of_one in samples)
    if nested or sum(map(len, samples)) != images:
        count = "nested" if nested else sum(map(len, samples))
        raise BlendError(
            f"{count} latents came for {images} images. Connect the latents that these images were decoded from, one "
            "per image (a video's frames share latents and cannot be picked so)."
        )
    picked = {"samples": torch.cat(samples)[best]}
    first = latents[0]
    if len(latents) == 1:
        picked = {**first, **picked}
        mask, index = first.get("noise_mask"), first.get("batch_index")
        if mask is not None and len(mask) == images:
            picked["noise_mask"] = mask[best]
        picked["batch_index"] = [index[i] for i in best] if index else best
    return picked
