"""The command line, and what its commands call.

    cli.py          the program; commands/ the options of each command
    options.py      what several commands read: prompts, reward LoRAs, device, dtype
    files.py        files written all or nothing, images as PNG, fingerprints of models
    tables.py       tables of text, on a terminal, as Markdown and CSV
    chain.py        prompts sampled on a base model's chain, for diagnosis and evaluation
    generation/     images of a blend, and the record that repeats them
    diagnosis/      how far bases disagree on a run
    evaluation/     methods side by side, into a report
    scores/         scores of the images of a folder
    toy/            the toy studio: a small model with its rewards and LoRAs, and the demo

Heavy libraries load inside the modules that need them; this file imports none.
"""
