"""README and docs: every command in them exists, every link leads somewhere, every page is listed."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from selfcorrect.config.explain import found_settings
from tests.docs.shell import ROOT, commands, fault, pages

PAGES = [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in pages()]
FAULTY = [
    ("selfcorrect frobnicate", "there is no command frobnicate"),
    ("selfcorrect train nosuch.yaml", "there is no recipe nosuch.yaml"),
    ("selfcorrect train countdown seeed=1 # seeds", "unknown key 'seeed'"),
    ("selfcorrect train --resume runs/mine stages.stage2.step=3", "unknown key 'stages.stage2.step'"),
    ("selfcorrect evaluate runs/x --problems 3", "evaluate has no option --problems"),
    ("selfcorrect evaluate MODEL task.name=maths", "must be one of"),
    ("selfcorrect evaluate MODEL evaluation.samples=4", "would all be the same attempt"),
    ("selfcorrect scale runs/x/final --most x", "valid integer"),
    ("selfcorrect check demo \\\n  rollouts.temperature=-1", "greater than 0"),
    ("selfcorrect check demo && selfcorrect anlyse runs/x", "no command anlyse"),
    ("selfcorrect compare compare_lab 'only=[scoree]'", "is none of the methods"),
    ("selfcorrect grade --task code out.jsonl task.dataset=humanevil", "humanevil"),
    ("selfcorrect explain alhpa", "did you mean"),
    ("selfcorrect export runs/mine", "Missing"),
    ("CUDA_VISIBLE_DEVICES=0 selfcorrect trian demo", "no command trian"),
    ("torchrun --nproc-per-node 2 -m selfcorrect.cli train countdown sed=1", "unknown key 'sed'"),
    ("torchrun --nproc-per-node 2 -m selfcorect.cli train countdown", "starts nothing of ours"),
    ("python -m selfcorrect.clie train countdown", "there is no module selfcorrect.clie"),
    ("make nothing", "the Makefile has no target nothing"),
    ("pip install 'selfcorrect[nope,lora]'", "no extra nope"),
    ("python benchmarks/none.py", "there is no benchmarks/none.py"),
    ("python benchmarks/loss_memory.py --nope", "has no option --nope"),
]
FINE = """\
$ selfcorrect train countdown name=x > log.txt 2>&1 &
selfcorrect make-repair-set MODEL --recipe RECIPE --output repair.jsonl [--split test]
torchrun --nproc-per-node 2 -m selfcorrect.cli train countdown seed=1
curl localhost | jq .
selfcorrect evaluate MODEL task.name=math 'evaluation.correction_prompts=["a; b # c", "d"]'
"""


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_exists(page: Path) -> None:
    wrong = [f"{command}\n    {why}" for command in commands(page) if (why := fault(command))]
    assert not wrong, "\n".join(["commands in the docs that would fail:", *wrong])


@pytest.mark.parametrize(("text", "told"), FAULTY)
@pytest.mark.parametrize("form", ["fence", "indented"])
def test_a_faulty_command_is_seen(text: str, told: str, form: str) -> None:
    page = f"# New\n\n```bash\n{text}\n```\n" if form == "fence" else "# New\n\n    " + text.replace("\n", "\n    ")
    found = [why for command in commands(Path("new.md"), page) if (why := fault(command))]
    assert len(found) == 1
    assert told in found[0]


@pytest.mark.parametrize(
    ("text", "told"), [("selfcorrect trane", "no command trane"), ("selfcorrect train --resmue RUN", "--resmue")]
)
def test_a_faulty_command_in_a_sentence_is_seen(text: str, told: str) -> None:
    (found,) = [fault(command) for command in commands(Path("new.md"), f"See `{text}`.")]
    assert found is not None
    assert told in found


def test_a_program_that_is_not_known_is_told_with_its_place() -> None:
    with pytest.raises(
        AssertionError, match=r"new.md:4: `frob x`: 'frob' is no program that is known here; .*shell.py"
    ):
        list(commands(Path("new.md"), "# New\n\n```bash\nfrob x\n```"))


def test_a_program_of_ours_that_is_mistyped_is_no_output() -> None:
    with pytest.raises(AssertionError, match="'selfcorect' is no program"):
        list(commands(Path("new.md"), "# New\n\n    selfcorect train countdown\n"))


def test_what_is_fine_is_not_told() -> None:
    found = list(
        commands(Path("new.md"), f"```bash\n{FINE}```\n\n```python\nselfcorrect = 1\n```\n\n    name: x\n    seed: 1\n")
    )
    assert len(found) == 6  # a pipe is two
    assert [fault(command) for command in found] == [None] * 6


def test_what_a_command_prints_is_no_command() -> None:
    page = "# New\n\n    .venv/bin/pip install 'selfcorrect[nope]'\n    model: mine, 2 attempts\n    two_attempts (8): hf\n    selfcorrect chekc x\n"
    assert [command.words[0] for command in commands(Path("new.md"), page) if fault(command)] == ["pip", "selfcorrect"]


def _links(page: Path) -> Iterator[tuple[str, str]]:
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target and not re.match(r"https?:|mailto:", str(target)):
                file, _, anchor = str(target).partition("#")
                yield file, anchor


def _anchors(page: Path) -> set[str]:
    """As GitHub and the site make them of headings."""
    tokens = MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8"))
    heads = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: Path) -> None:
    for file, anchor in _links(page):
        target = page.parent / file if file else page
        assert target.exists(), f"{page.name} links to {file}, which is not there"
        assert not anchor or anchor in _anchors(target), f"{page.name} links to {file}#{anchor}: no such heading"


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / file).resolve() for file, _ in _links(index)}
    for page in pages():
        title = page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        assert page in listed | {index}, (
            f"docs/README.md lacks a line such as: - [{title}]({page.name}): what it is about"
        )


@pytest.mark.parametrize("page", ["from-trl.md", "from-xtuner.md"])
def test_names_here_are_settings(page: str) -> None:
    """In the tables of names, what the right column has in code."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").partition("## Names")[2].partition("\n## ")[0]
    rows = [
        row.split("|")[2] for row in text.splitlines() if row.startswith("| ") and not row.startswith("| TRL | here")
    ]
    names = [name for row in rows for name in re.findall(r"`([a-z_A-Z.0-9]+)`", row)]
    assert len(names) > 15
    values = {"math", "code", "custom"}
    unknown = [name for name in names if name not in values and not any(s.key == name for s in found_settings(name))]
    assert not unknown
