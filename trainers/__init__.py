"""Trainers: a base model, a reward, prompts and a KL weight become a reward LoRA.

    config.py       every setting with its help            presets/        published settings as TOML
    families.py     what differs between model families    bases.py        the base model of a run
    transition.py   the sampler's steps as Gaussians       rollout.py      trajectories
    policy.py       a network with a LoRA that can be switched off
    losses.py       the objectives as pure functions       objectives.py   the same over a policy's trajectories
    updating.py     one epoch of any objective             averaging.py    the average of the weights
    gathering.py    what several processes know together   sharding.py     parameters that FSDP shares out
    train.py        the loop, read from top to bottom
    checkpoint.py, tracking.py, export.py                  what it leaves behind

Heavy libraries load inside the modules that need them; this file imports none.
"""
