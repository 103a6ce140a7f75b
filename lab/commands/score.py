"""`diffusion-blend score`: options and tables. The work in scores/run.py loads only when it is called."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Device, WeightFolders, with_tables

if TYPE_CHECKING:
    from ...blend_core.rewards import Library
    from ..scores.chosen_rewards import Chosen, ScoreSettings
    from ..scores.image_folder import Item

SPACE = 3  # columns of the terminal between two of a table's


@dataclass(frozen=True)
class RewardModels:
    """Where the weights of rewards lie, and how they are used."""

    models: WeightFolders = None
    download: Annotated[bool, typer.Option("--download", help="Fetch missing weights (up to 4 GB a reward).")] = False
    device: Device = "auto"
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, float16 or bfloat16.")] = "float32"
    scale: Annotated[str, typer.Option(help="none, or a paper's: diffusion-blend, flow-grpo.")] = "none"

    def library(self) -> Library:
        """Where the weights are looked for."""
        from ..scores.chosen_rewards import library_of

        return library_of(self.models or [], self.download)

    def settings(self) -> ScoreSettings:
        """What scores depend on. Raises BlendError for a device or dtype that does not exist."""
        from ..scores.chosen_rewards import ScoreSettings

        return ScoreSettings.of(self.device, self.dtype, self.scale)


@with_tables
def command(
    *,
    folder: Annotated[Path | None, typer.Argument(help="Folder with png, jpg or webp images.")] = None,
    reward: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME=WEIGHT; repeat. A path/file.py is a reward of your own.")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="Say what rewards there are, and stop.")] = False,
    prompt: Annotated[str | None, typer.Option(help="The prompt of all images.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help=".txt (a line per image), .json {file: prompt}, or .csv with file,prompt.")
    ] = None,
    stored: Annotated[
        bool, typer.Option("--stored", help="Read the scores that Reward Scorer left in the images; score nothing.")
    ] = False,
    recursive: Annotated[bool, typer.Option("--recursive", help="Subfolders too.")] = False,
    models: RewardModels,
    batch_size: Annotated[int, typer.Option(help="Images per pass, where they have one size.", min=1)] = 8,
    top: Annotated[int, typer.Option(help="Images in the table that is printed; 0: means only.", min=0)] = 20,
    out: Annotated[Path | None, typer.Option(help="For scores.csv and scores.json. Default: FOLDER.")] = None,
) -> None:
    """Score the images of a folder with rewards.

    Prompts come from the images themselves (ComfyUI's metadata, or generate's record), --prompt or --prompts. A run
    that was stopped goes on when the same command is given again; images that have not changed are not scored twice.
    """
    from ...blend_core import BlendError
    from ..scores.run import run

    library, settings = models.library(), models.settings()
    if show:
        print_rewards(reward or [], library, settings)
        return
    if folder is None:
        raise BlendError("no folder came. Give the folder with the images, or --list to see the rewards.")
    if prompt is not None and prompts is not None:
        raise BlendError("both --prompt and --prompts came. Give one of them.")
    out = out or folder
    if stored:
        if reward or prompt is not None or prompts is not None:
            raise BlendError("--stored reads scores that were made before. Leave out --reward, --prompt and --prompts.")
        print_stored(folder, recursive, top, out)
        return
    source = prompts if prompt is None else prompt
    items, rewards = run(folder, reward or [], library, settings, out, source, recursive, batch_size)
    print_scores(items, rewards, top)
    print(f"Scores of all images: {out / 'scores.csv'}, {out / 'scores.json'}")


def print_scores(items: list[Item], rewards: list[Chosen], top: int) -> None:
    """The best images by weighted score, or by the first reward where there are no weights; then means."""
    from ..scores.run import total_scores

    columns = {reward.label: {item.file: item.scores[reward.label] for item in items} for reward in rewards}
    total = total_scores(items, rewards)
    columns |= {"weighted": total} if total else {}
    print_columns(columns, "weighted" if total else next(iter(columns)), top)


def print_stored(folder: Path, recursive: bool, top: int, out: Path) -> None:
    """The same of scores that the images hold. Raises BlendError where none does."""
    from ..scores.image_folder import listed
    from ..scores.stored import TABLE, columns_of, read, write_table

    images, without = read(folder, recursive)
    columns = columns_of(images)
    print_columns(columns, "weighted", top)
    counts = Counter(stored.bucket for _, stored in images if stored.bucket)
    print(*(f"{bucket} {count}" for bucket, count in counts.most_common()), sep=", ", end="\n" if counts else "")
    write_table(out, images, columns)
    print(f"Read from the images as Reward Scorer stored them; nothing was scored anew. All: {out / TABLE}")
    if without:
        print(f"Without scores of their pixels, and left out: {listed(without)}")


def print_columns(columns: dict[str, dict[str, float]], by: str, top: int) -> None:
    """A table of columns file -> score, best of one column first, then means. Only that column has to be whole."""
    from rich.text import Text

    from ..scores.run import statistics
    from ..tables import plain_table, print_wide

    scores = columns[by]
    table = plain_table(f"{min(top, len(scores))} of {len(scores)} images, best {by} first")
    table.add_column("image", overflow="fold", min_width=20)
    for name in columns:
        table.add_column(Text(name), justify="right", no_wrap=True)
    for file in sorted(scores, key=scores.get, reverse=True)[:top]:
        table.add_row(Text(file), *(f"{column[file]:.4g}" if file in column else "-" for column in columns.values()))
    table.add_section()
    means = [statistics(column.values()) for column in columns.values()]
    table.add_row("mean", *(f"{figures['mean']:.4g}" for figures in means))
    if len(scores) > 1:
        errors = [figures["standard_error"] for figures in means]
        table.add_row("standard error", *("-" if error is None else f"± {error:.2g}" for error in errors))
    width = 20 + sum(max(len(name), 9) + SPACE for name in columns)
    print_wide(table, width)


def print_rewards(more: list[str], library: Library, settings: ScoreSettings) -> None:
    """All rewards, `more` of the user's own among them, and where the weights come from."""
    from rich.text import Text

    from ...blend_core.rewards import installed_rewards, reward_cards
    from ..scores.chosen_rewards import card_of
    from ..tables import plain_table, print_wide

    places = {place: place for place in more if place not in reward_cards()}
    names = dict.fromkeys([*reward_cards(), *installed_rewards()]) | library.own_rewards() | places
    table = plain_table("prompt: reads it; gradient: reaches the pixels")
    for column in ("reward", "measures", "usual range", "prompt", "gradient"):
        table.add_column(column, no_wrap=column != "measures", overflow="fold")
    files = []
    for name, place in names.items():
        try:
            card, _ = card_of(str(place or name), library, settings)
        except Exception as error:  # one's own code can fail in any way; the list is about the others too
            table.add_row(Text(name), "cannot be loaded, see below")
            files += [f"{name}: {error}"]
            continue
        ends = "not stated" if card.usual_range is None else "{:g} to {:g}".format(*card.usual_range)
        facts = [ends, *("yes" if applies else "-" for applies in (card.reads_prompt, card.differentiable))]
        table.add_row(Text(name), Text(card.measures), *facts)
        if card.licence != "no weights":
            files += [f"{name}, licence: {card.licence}"]
            files += [f"  needs the Python package {package}" for package in card.packages]
            for file in card.files:
                files += [f"  {file.filename}{' (never downloaded for you)' if file.by_hand else ''}: {file.page}"]
    print_wide(table, max(map(len, names)) + 58)  # 58: the other columns
    print("Licences and files of those with weights, looked for in", *map(str, library.folders))
    print(*files, sep="\n")  # plain, so that addresses stay whole
