"""Trainers: a base model, a reward, prompts and a KL weight become a reward LoRA.

    settings/       every setting with help, choices and range, the rules between them, published settings as TOML
    model/          what a policy is, the LoRA on a base model that is one, what differs between families, the sampler
                    as a chain of Gaussians, trajectories
    objectives/     what an objective is, a file for each, and their losses as pure functions
    data/           prompts, preference pairs, and which of them an epoch is made of
    loop/           a run in memory, the parts of its epochs, validation, checkpoints, log, stopping
    files/          the LoRA that a run writes, what its header says, and other spellings
    accelerator.py  devices, precision, processes and trackers
    rewards.py      the reward that is trained, and those that are watched
    distributed.py  what several processes know together
    sharding.py     parameters that FSDP shares out
    places.py       paths as files that are passed on state them
    seeding.py      every draw from the run's seed and what it is for
    train.py        the loop, read from top to bottom

Heavy libraries load inside the modules that need them; this file imports none.
"""
