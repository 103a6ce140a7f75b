"""Prompts as token ids. Tokenizers are read from folders on this machine, never from the network."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..files import RewardFile

CLIP_FILES = tuple(
    RewardFile("openai/clip-vit-large-patch14", name, also=("sd1_tokenizer",))  # ComfyUI ships it under that name
    for name in ("vocab.json", "merges.txt")
)
BERT_FILE = RewardFile("google-bert/bert-base-uncased", "vocab.txt")

log = logging.getLogger(__name__)


class Tokens:
    """Prompts -> (ids, mask), each (batch, length): padded, and cut at `length` with a warning."""

    def __init__(self, tokenizer, length: int):
        self.tokenizer, self.length = tokenizer, length

    def __call__(self, prompts: Sequence[str], device: torch.device | None) -> tuple[Tensor, Tensor]:
        """Ids and mask (1 token, 0 padding) on `device`."""
        for prompt in prompts:
            spare = len(self.tokenizer(prompt, verbose=False)["input_ids"]) - self.length
            if spare > 0:
                log.warning("the reward reads %d tokens; the last %d of %r are left out", self.length, spare, prompt)
        options = {"padding": "max_length", "truncation": True, "max_length": self.length, "return_tensors": "pt"}
        tokens = self.tokenizer(list(prompts), **options).to(device)
        return tokens["input_ids"], tokens["attention_mask"]


def clip_tokens(folder: Path, length: int = 77) -> Tokens:
    """CLIP's byte pairs, from a folder with vocab.json and merges.txt."""
    # The slow class of transformers 4 splits CJK text another way; version 5 keeps the name without saying so to types.
    from transformers import CLIPTokenizerFast  # pyright: ignore[reportAttributeAccessIssue]

    return Tokens(CLIPTokenizerFast.from_pretrained(str(folder)), length)


def bert_tokens(folder: Path, length: int = 35) -> Tokens:
    """BERT's lower-case word pieces, from a folder with vocab.txt; ImageReward reads 35 of them."""
    from transformers import BertTokenizer

    return Tokens(BertTokenizer.from_pretrained(str(folder)), length)
