"""README and pages: how long the README is, that links lead somewhere, and that every command they show exists."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer
from diffusion_blend.lab.cli import app, main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("CONTRIBUTING.md"))]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md")), ROOT / "docs" / "reward_loras.md"]
LONGEST = 120  # lines of the README
OTHERS = {"git", "comfy", "pip", "cd"}  # programs that are not ours
COMMANDS = typer.main.get_command(app).commands
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def fenced(page):
    """The blocks of commands: what stands between fences without a language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.S | re.M)
    return [block for language, block in blocks if not language]


def lines_of(page):
    """The commands of a page, in blocks and in the text, each as a list of words; comments and `...` left out."""
    blocks = "\n".join(fenced(page)).replace("\\\n", " ")
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    inline = re.findall(r"`((?:diffusion-blend|make|python|accelerate) [^`]+)`", text.replace("\n", " "))
    for line in [*blocks.splitlines(), *inline]:
        words = shlex.split(line, comments=True)
        if words:
            yield words


CASES = [(page, words) for page in PAGES for words in lines_of(page)]
IDS = [f"{page.name}: {' '.join(words)}" for page, words in CASES]


def parse(words):
    """Read a command's options as the command line does. Raises the parser's error for one that does not exist."""
    name, *arguments = [word for word in words if word != "..."]
    command = COMMANDS[name]
    try:
        return command.make_context(name, arguments).params
    except typer.Exit:  # --help has answered
        return {}


def check(words):
    """Assert that a command could be given as it stands."""
    program, *rest = words
    if program == "diffusion-blend":
        parse(rest)
    elif program == "accelerate":
        assert rest[:3] in (["launch"], ["launch", "-m", "diffusion_blend.lab"]), words
        parse(rest[3:] or ["train"])
    elif program == "make":
        assert rest[0] in TARGETS or (ROOT / rest[0]).exists(), words
    elif Path(program).name == "python" and rest[0] == "-m":
        module = rest[1]
        place = ROOT.joinpath(*module.split("."))
        known = importlib.util.find_spec(module) if module.startswith(("diffusion_blend", "pytest")) else None
        assert known or place.with_suffix(".py").is_file(), words
        assert all((ROOT / word).exists() for word in rest[2:] if word.startswith("tests/")), words
    elif Path(program).name == "python":
        assert (ROOT / rest[0]).is_file(), words
    else:
        assert program in OTHERS or re.fullmatch(r"[A-Z_]+=\S+", program), words


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_the_scan_sees_the_commands():
    seen = {words[1] for _, words in CASES if words[0] == "diffusion-blend" and len(words) > 1}
    assert {"generate", "diagnose", "evaluate", "score", "train", "inspect", "fetch"} <= seen
    assert {words[1] for _, words in CASES if words[0] == "make"} >= {"demo", "test"}


@pytest.mark.parametrize(("page", "words"), CASES, ids=IDS)
def test_every_command_of_a_page_exists(page, words):
    check(words)


def test_a_command_that_does_not_exist_is_noticed():
    with pytest.raises(Exception, match="--wieghts"):  # the parser's own class, which differs by version
        check(["diffusion-blend", "generate", "--wieghts", "1"])
    with pytest.raises(KeyError, match="bake"):
        check(["diffusion-blend", "bake"])
    with pytest.raises(AssertionError, match="cake"):
        check(["make", "cake"])


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_link_of_a_page_leads_to_a_file(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_the_readme_leads_to_every_guide():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for guide in sorted((ROOT / "docs" / "guides").glob("*.md")):
        assert f"docs/guides/{guide.name}" in text, guide


OURS = [words[1:] for page in GUIDES for words in lines_of(page) if words[0] == "diffusion-blend"]
CHEAP = [shlex.split(line) for line in dict.fromkeys(shlex.join(words) for words in OURS if "toy" in words)]


@pytest.mark.parametrize("words", CHEAP, ids=[" ".join(words) for words in CHEAP])
def test_commands_on_the_toy_studio_run_as_they_stand(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    assert list(tmp_path.rglob("*.png"))


def test_commands_that_only_list_run_as_they_stand(capsys):
    listing = [words for words in OURS if words[-1] == "--list" or words == ["fetch"]]
    assert len(listing) > 1
    for words in listing:
        assert main(words) == 0
        assert capsys.readouterr().out
