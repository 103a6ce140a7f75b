"""Every reward on a card that is not there: its numbers never meet another device's, and none is read back."""

import pytest
import torch
from diffusion_blend.blend_core.rewards import load_reward, reward_cards

from ..core.test_card import CARD, counted

ON_THE_HOST = ("jpeg_", "ocr", "geneval")  # files are written there, text is read there, boxes are counted there
NAMES = sorted(name for name in reward_cards() if not name.startswith(ON_THE_HOST))
MOST_COPIES = 3  # a prompt's tokens and their masks
READ = {"imagereward": 1}  # its attention's mask


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_made_on_the_card(library, small, name):
    reward = load_reward(name, library).to(CARD)
    images = torch.rand(3, 3, 40, 36, device=CARD)
    with torch.inference_mode():
        scores, copies, read = counted(lambda: reward.score(images, ["a red fox", "two cats", "snow"]))
    assert scores.device.type == CARD and scores.shape == (3,)
    assert copies <= MOST_COPIES and read <= READ.get(name, 0)
