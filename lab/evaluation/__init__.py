"""`diffusion-blend evaluate`: methods side by side, from the same prompts, seeds and schedule.

protocol.py    what is compared, read from a TOML file
evaluation.py  prompts, passes and files of a protocol, computed once
host.py        the models, and the images of a pass with their scores and path KL
methods.py     the methods, one function each
queue.py       the passes of an evaluation, shared out over processes and recorded as they come
memory.py      the most memory that a pass takes
summary.py     tables: means, intervals, hypervolume, methods at equal path KL
report.py      plots and the HTML report
"""
