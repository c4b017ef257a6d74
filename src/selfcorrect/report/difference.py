"""`selfcorrect diff A B`: two evaluations that exist, of the same problems, side by side with paired differences."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from selfcorrect.config.paths import FILE_HOLDS, TASK_FILE, asked_by, at_home, run_above
from selfcorrect.config.yaml12 import load
from selfcorrect.errors import DataError
from selfcorrect.evaluation.averages import Change
from selfcorrect.evaluation.caution import bought, caution
from selfcorrect.evaluation.evaluate import Evaluation
from selfcorrect.evaluation.kept import begun_with, flat
from selfcorrect.evaluation.metrics import Summary
from selfcorrect.evaluation.pairs import Pair, pairs
from selfcorrect.evaluation.stored import read_rollouts
from selfcorrect.evaluation.told import estimate_text
from selfcorrect.report.load import read_evaluations
from selfcorrect.types import Rollout

_PLACES = ("workers", "file", "data", "evaluate_data", "path")  # settings of a task that tell nothing of what it asks
RECORDED = "recorded"  # the decoding of attempts that this program did not sample
_SHOWN = 60  # characters of a setting in a note


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two. name: the folder as it was named, and which of its evaluations; file: its rollouts.

    summary: over the problems that both could grade, so that the differences are those of these figures.
    """

    name: str
    file: str
    task: str
    about: str
    decoding: str
    summary: Summary


@dataclass(frozen=True, slots=True)
class Difference:
    """Two evaluations of the same n problems. notes: what else differs, and what cannot be concluded.

    figures: shares by name (`Accuracy@t1`, ..., `delta`, `i->c`, `c->i`, `unchanged`; where rewards are partial
    `reward@t1`, ...; of k samples `pass@k, t1`, ...), each with b less a. As text it is the table of the command.
    """

    a: Side
    b: Side
    n: int
    figures: dict[str, Pair]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def diff(a: str | Path, b: str | Path, *, evaluation: str | None = None, common: bool = False) -> Difference:
    """What evaluation b has that a has not: each one's figures, and b less a, paired problem by problem.

    a, b: run folders, folders of `selfcorrect evaluate`, models in a run (runs/NAME/final), or one evaluation
    (runs/NAME/evaluations/base.json). Of a folder with several the last is taken, or the one called `evaluation`.
    common: pair the problems that both have, where one has more. Raises DataError where there is no such evaluation, or
    problems, decoding, samples or attempts differ. Loads no model, and no torch.
    """
    sides = [_read(named, evaluation) for named in (a, b)]
    (one, ours), (other, theirs) = sides
    if Path(one.file).resolve() == Path(other.file).resolve():
        raise DataError(
            f"{a} and {b} are the same evaluation ({one.file}); name another one, like "
            f"{Path(one.file).with_name('base.json')}"
        )
    samples = _check_way(sides)
    both = _common(one, ours, other, theirs, common)
    notes = [*_other_words(one, ours, other, theirs, both), *_other_settings(one, other)]
    ours, theirs = ([each for each in rollouts if each.problem.id in both] for rollouts in (ours, theirs))
    first, second, figures = pairs(ours, theirs, samples)
    one, other = replace(one, summary=first), replace(other, summary=second)
    if first.n < len(both):
        notes.append(f"{len(both) - first.n:,} problems are left out, of which one side or the other has no verdict")
    return Difference(one, other, first.n, figures, (*notes, *_cautions(one, other, figures)))


def _read(named: str | Path, evaluation: str | None) -> tuple[Side, list[Rollout]]:
    folder, stem = _find(at_home(named, "evaluation"), evaluation)
    name, _, wording = stem.partition("@")
    notes: list[str] = []
    known = {each.name: each for each in read_evaluations(folder, notes)}
    if name and name not in known:
        raise DataError(
            f"{folder} holds no finished evaluation {name!r}"
            + (f"; it has {', '.join(known)}" if known else "")
            + "".join(f" ({note})" for note in notes)
        )
    if not known:
        below = [each.parent.name for each in sorted(folder.glob("*/evaluations"))]
        raise DataError(
            f"{folder} holds no finished evaluation"
            + (f"; name one of its folders: {', '.join(below[:5])}" if below else "; `selfcorrect evaluate` makes one")
        )
    kept: Evaluation = known[name] if name else list(known.values())[-1]
    file = folder / f"{kept.name}{'@' + wording if wording else ''}.rollouts.jsonl"
    rollouts = read_rollouts(file, kept.task)
    where = folder.parent if Path(named).is_file() else named
    told = f"{where}, {kept.label}" + (f" (step {kept.step:,})" if kept.step else "")
    told += f", asked as {wording}" if wording else ""
    return Side(told, str(file), kept.task, kept.about, kept.decoding, kept.summary), rollouts


def _find(path: Path, evaluation: str | None) -> tuple[Path, str]:
    """The folder of evaluations, and the name of the one that is meant; empty for the last."""
    run = run_above(path) if path.is_dir() else None
    if path.is_file():
        name = path.name.removesuffix(".json").removesuffix(".rollouts.jsonl")
        if name == path.name or not path.with_name(f"{name.partition('@')[0]}.json").is_file():
            raise DataError(f"{path} is no file of an evaluation; name a folder, or its evaluations/NAME.json")
        return path.parent, name
    if not path.is_dir():
        raise DataError(f"{path}: no such folder or file; name a run, or what `selfcorrect evaluate` wrote")
    if (path / "evaluations").is_dir():
        return path / "evaluations", evaluation or ""
    if run is not None and path.name != "evaluations":
        if path.name != "final" and path.parent.name != "models":
            raise DataError(
                f"{path}: no evaluation of {run} is of this model; `selfcorrect evaluate {path} --output FOLDER` makes "
                "one, for FOLDER to be named here"
            )
        return run / "evaluations", evaluation or ("" if path.name == "final" else path.name)
    return path, evaluation or ""


def _check_way(sides: Sequence[tuple[Side, list[Rollout]]]) -> int:
    """The samples of each problem. Raises DataError where the two were asked in ways that cannot be compared."""
    (one, _), (other, _) = sides
    ways: list[list[str | int]] = [
        [side.task, side.decoding, len(rollouts[0].attempts), _samples(side, rollouts)] for side, rollouts in sides
    ]
    if RECORDED in (one.decoding, other.decoding):  # a note says that how those were sampled is not known
        ways[0][1] = ways[1][1]
    told = (
        ("task", "only evaluations of one task can be paired"),
        ("decoding", "evaluate one again with the other's evaluation.samples and evaluation.temperature"),
        ("attempts at each problem", "evaluate one again with the other's rollouts.attempts"),
        ("samples of each problem", "evaluate one again with the other's evaluation.samples"),
    )
    for (what, way_out), here, there in zip(told, *ways, strict=True):
        if here != there:
            raise DataError(f"{what}: {here} in {one.name}, but {there} in {other.name}; {way_out}")
    return int(ways[0][3])


def _samples(side: Side, rollouts: Sequence[Rollout]) -> int:
    """Of each problem. Raises DataError where some have more than others."""
    counts = Counter(rollout.problem.id for rollout in rollouts)
    few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[few] != counts[many]:
        raise DataError(
            f"{side.file}: has {counts[many]} lines of problem {many}, and {counts[few]} of {few}; it is not whole, or "
            "two problems have the same id"
        )
    return counts[few]


def _common(
    one: Side, ours: Sequence[Rollout], other: Side, theirs: Sequence[Rollout], common: bool
) -> Mapping[str, None]:  # fmt: skip
    """Ids of the problems that both have. Raises DataError where one has more and `common` is not asked for."""
    first, second = (dict.fromkeys(each.problem.id for each in rollouts) for rollouts in (ours, theirs))
    both = {name: None for name in first if name in second}
    if not both:
        raise DataError(
            f"{one.name} and {other.name} have no problem in common (such as {next(iter(first))} in the one and "
            f"{next(iter(second))} in the other); evaluate both on the same ones"
        )
    if not common and not len(first) == len(second) == len(both):
        raise DataError(
            f"{one.name} has {len(first):,} problems and {other.name} {len(second):,}, of which {len(both):,} are the "
            "same; evaluate both on the same ones, or pair those that both have with --common (common=True)"
        )
    return both


def _other_words(
    one: Side, ours: Sequence[Rollout], other: Side, theirs: Sequence[Rollout], both: Mapping[str, None]
) -> list[str]:  # fmt: skip
    """A note where problems of one id are put in other words. Raises DataError where they are other problems."""
    first, second = ({each.problem.id: each.problem for each in rollouts} for rollouts in (ours, theirs))
    reworded = [name for name in both if first[name].prompt != second[name].prompt]
    for name in both:
        here, there = first[name], second[name]
        same = here.reference == there.reference and (here.reference or here.prompt == there.prompt)
        if not same:
            raise DataError(
                f"problem {name} is another one in {one.name} than in {other.name} (other prompt or answer), so the "
                "two cannot be paired; evaluate both on the same data"
            )
    count = f"{len(reworded):,} of {len(both):,} problems"
    return [f"the prompts of {count} read differently (such as {reworded[0]})"] if reworded else []


def _other_settings(one: Side, other: Side) -> list[str]:
    """Notes on what else of the question differs, as far as the folders tell."""
    notes, before, now = list[str](), _asked(one), _asked(other)
    if before and now:
        for name in dict.fromkeys([*before, *now]):
            if (was := before.get(name)) != (is_now := now.get(name)):
                notes.append(f"{name} is {_short(was)} in A and {_short(is_now)} in B")
    if RECORDED in (one.decoding, other.decoding) and one.decoding != other.decoding:
        notes.append(f"A is {one.decoding} and B {other.decoding}: how recorded attempts were sampled is not known")
    graders = [_grader(side) for side in (one, other)]
    if all(graders) and graders[0] != graders[1]:
        notes.append("the task's file was another one for A than for B, and may have graded otherwise")
    return notes


def _asked(side: Side) -> dict[str, Any]:
    """The settings that say what is asked, by their dotted names; empty where they cannot be read."""
    try:
        config = load((_folder(side) / "config.yaml").read_text(encoding="utf-8"))
        limits = {name: config["rollouts"].get(name) for name in ("max_new_tokens", "self_refine")}
        told = {"task": config["task"], "rollouts": limits, "model.system_prompt": config["model"].get("system_prompt")}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):
        return {}
    return {name: value for name, value in flat(told) if name.rpartition(".")[2] not in _PLACES}


def _grader(side: Side) -> str | None:
    """A digest of the file of a task of one's own, as a run or an evaluation keeps it; None where neither tells."""
    name = Path(side.file).name.removesuffix(".rollouts.jsonl").partition("@")[0]
    task = begun_with(_folder(side) / "evaluations" / "kept" / f"{name}.jsonl", "task")
    if isinstance(task, dict) and (told := task.get(FILE_HOLDS)):
        return str(told)
    return asked_by(_folder(side)).get(TASK_FILE)


def _folder(side: Side) -> Path:
    return Path(side.file).parent.parent


def _short(value: object) -> str:
    text = "not set" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _cautions(one: Side, other: Side, figures: Mapping[str, Pair]) -> list[str]:
    """Why nothing can be concluded, and where a gain in delta is no gain."""
    found = [(name, caution(side.summary)) for name, side in (("A", one), ("B", other))]
    told = [f"nothing can be concluded from {name}: {why}" for name, why in found if why]
    if not told and "delta" in figures:
        last = f"Accuracy@t{len(one.summary.accuracy)}"
        change = Change(*(figures[name].less for name in ("Accuracy@t1", last, "delta")))
        told += [price] if (price := bought(change, "A")) else []
    return told


def _lines(found: Difference) -> list[str]:
    of = found.b.about if found.a.about == found.b.about else f"{found.a.about}; {found.b.about}"
    lines = [f"A: {found.a.name}", f"B: {found.b.name}", f"{of}, {found.b.decoding}", ""]
    rows = [[f"percent of n = {found.n:,} problems", "A", "B", "B less A"]]
    for name, pair in found.figures.items():
        signed = name == "delta"
        label = f"{name}, times 100" if name.startswith("reward") else name
        each = ((pair.a, signed), (pair.b, signed), (pair.less, True))
        rows.append([label, *(estimate_text(*of, unit="") for of in each)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, "95 % intervals; B less A is paired over the problems", *(f"note: {note}" for note in found.notes)]
