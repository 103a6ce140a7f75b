"""Rewards: images (batch, 3, height, width) in [0, 1] and prompts -> one score per image, (batch,), higher is better.

`load_reward(name)` finds them. contract.py says what every reward is; image.py has those without weights, learned/ the
learned ones, custom.py the user's own; buckets.py keeps scores with the images.
"""

from .buckets import (
    BUCKETS,
    KEY,
    StoredScores,
    Thresholds,
    as_bytes,
    image_key,
    store_scores,
    stored_entries,
    stored_scores,
)
from .combined import SCALES, Rescaled, RewardScale, WeightedSum, rescaled, weighted
from .contract import IMAGES_PER_PASS, Card, Reward, check_images
from .files import Library, RewardFile
from .image import colourfulness, jpeg_compressibility
from .paired import Draws, estimate, scored_ways
from .table import DTYPES, installed_rewards, load_reward, needed_files, reward_cards

__all__ = [
    "BUCKETS",
    "DTYPES",
    "IMAGES_PER_PASS",
    "KEY",
    "SCALES",
    "Card",
    "Draws",
    "Library",
    "Rescaled",
    "Reward",
    "RewardFile",
    "RewardScale",
    "StoredScores",
    "Thresholds",
    "WeightedSum",
    "as_bytes",
    "check_images",
    "colourfulness",
    "estimate",
    "image_key",
    "installed_rewards",
    "jpeg_compressibility",
    "load_reward",
    "needed_files",
    "rescaled",
    "reward_cards",
    "scored_ways",
    "store_scores",
    "stored_entries",
    "stored_scores",
    "weighted",
]
