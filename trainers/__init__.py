"""Trainers: a base model, a reward, prompts and a KL weight become a reward LoRA.

    settings/       every setting with its help, its checks, published settings as TOML
    model/          the base model of a run and what differs between families, a LoRA that can be switched off, the
                    sampler as a chain of Gaussians, trajectories
    objectives/     the objectives as pure functions, and the same over a policy's trajectories
    data/           prompts, preference pairs, and which of them an epoch is made of
    loop/           an epoch of any objective, validation, the average of the weights, checkpoints, log, stopping
    files/          the LoRA that a run writes, and other spellings
    rewards.py      the reward that is trained, and those that are watched
    distributed.py  what several processes know together
    sharding.py     parameters that FSDP shares out
    places.py       paths as files that are passed on state them
    seeding.py      every draw from the run's seed and what it is for
    train.py        the loop, read from top to bottom

Heavy libraries load inside the modules that need them; this file imports none.
"""
