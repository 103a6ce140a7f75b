"""Rewards: images (batch, 3, height, width) in [0, 1] and prompts -> one score per image, (batch,), higher is better.

`load_reward(name)` finds them. contract.py says what every reward is; image.py has those without weights; clip.py,
blip.py and siglip.py the learned ones; custom.py the user's own.
"""

from .combined import SCALES, Rescaled, RewardScale, WeightedSum, rescaled, weighted
from .contract import IMAGES_PER_PASS, Card, Reward, check_images
from .files import Library, RewardFile
from .image import colourfulness, jpeg_compressibility
from .paired import Draws, estimate, scored_ways
from .table import DTYPES, installed_rewards, load_reward, reward_cards

__all__ = [
    "DTYPES",
    "IMAGES_PER_PASS",
    "SCALES",
    "Card",
    "Draws",
    "Library",
    "Rescaled",
    "Reward",
    "RewardFile",
    "RewardScale",
    "WeightedSum",
    "check_images",
    "colourfulness",
    "estimate",
    "installed_rewards",
    "jpeg_compressibility",
    "load_reward",
    "rescaled",
    "reward_cards",
    "scored_ways",
    "weighted",
]
