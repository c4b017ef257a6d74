"""What several processes must agree on before a run begins: each host has its own code, recipe, model and disk."""

import hashlib
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import selfcorrect
from selfcorrect.config import TrainConfig
from selfcorrect.config.paths import OWN, own_files, with_own_files
from selfcorrect.errors import ConfigError
from selfcorrect.evaluation.kept import flat
from selfcorrect.parallel.ranks import Alone
from selfcorrect.runs.checkpoint import newest_state
from selfcorrect.runs.folder import version_of
from selfcorrect.tasks.own import files_of

_COMPUTE = ("torch", "transformers", "tokenizers", "numpy", "peft", "bitsandbytes")


def check_code(ranks: Alone) -> None:
    """Raises ConfigError where hosts have other versions of what computes, this package's own files included."""
    if ranks.size > 1:
        ranks.same(versions(), "install the same on all hosts")


def check_settings(ranks: Alone, config: TrainConfig) -> None:
    """Raises ConfigError where ranks were started with other settings."""
    told = dict(flat(config.model_dump(mode="json")))
    ranks.same(told, "give all the same recipe and settings, with paths that name the same on all hosts")


def check_overrides(ranks: Alone, overrides: Sequence[str]) -> None:
    """Raises ConfigError where ranks go on with other settings than rank 0, whose would count alone."""
    ranks.same({"what follows --resume": list(overrides)}, "give all the same settings")


def check_is_here(ranks: Alone, path: Path) -> None:
    """Raises ConfigError where a run lies at `path` on the disk of another host, and none or an older one on rank 0's.

    Rank 0 would begin anew, or go back.
    """
    steps = ranks.every(lambda: newest_step(path))
    best = max(range(len(steps)), key=lambda rank: steps[rank])
    if steps[best] > steps[0]:
        there, here = (
            f"at step {step}" if step > 0 else "begun" if step == 0 else "none" for step in (steps[best], steps[0])
        )
        raise ConfigError(
            f"{path}: {ranks.named(best)} has a run there, {there}, and {ranks.named(0)}, which reads and writes it "
            f"for all, has {here}: start rank 0 on the host that has it (torchrun: --node-rank 0, and its address as "
            "--master-addr), copy the folder, or choose another name=..."
        )


@contextmanager
def own_files_sent(ranks: Alone, config: TrainConfig, path: Path) -> Iterator[TrainConfig]:
    """Rank 0's settings for a run that goes on, as this rank can read them: where they name copies in the run's folder
    that this disk has not got, or has others of, rank 0's are here until the end.
    """
    copies = [own for own in own_files(config) if Path(own.file).is_relative_to(path.absolute() / OWN)]
    if ranks.size == 1 or not copies:
        yield config
        return
    sent = ranks.first(lambda: [_contents(own.file) for own in copies])
    with ExitStack() as stack:
        here = dict[str, str]()
        for own, contents in zip(copies, sent, strict=True):
            if _contents(own.file) == contents:
                continue
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="selfcorrect-")))
            for name, text in contents.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(text)
            here[own.setting] = str(folder / Path(own.file).name)
        yield with_own_files(config, here)


def _contents(file: str) -> dict[str, bytes]:
    """Of a file of the user's own and what it imports from beside it, by name; empty where it is not there."""
    return {name: each.read_bytes() for name, each in files_of(file).items()} if Path(file).is_file() else {}


def newest_step(path: Path) -> int:
    """Of the newest checkpoint of a run; 0 where it has none yet, -1 where there is no run."""
    if not (path / "config.yaml").is_file():
        return -1
    state = newest_state(path / "checkpoints")
    return state.step if state else 0


def notes_of(ranks: Alone, notes: Sequence[str]) -> list[str]:
    """Rank 0's, and those that it has not with their hosts, as these may confine programs in other ways."""
    first, *others = ranks.every(lambda: list(notes))
    told = dict[str, list[str]]()
    for host, each in zip(ranks.hosts[1:], others, strict=True):
        for note in each:
            if note not in first and host not in told.setdefault(note, []):
                told[note].append(host)
    return [*first, *(f"{', '.join(hosts)}: {note}" for note, hosts in told.items())]


@cache
def versions() -> dict[str, Any]:
    """Of what computes, by name. This package's is a digest of its files: a checkout may be ahead of another's."""
    found: dict[str, Any] = {"python": ".".join(platform.python_version_tuple()[:2])}
    folder = Path(selfcorrect.__file__).parent
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.py"))
    digest = hashlib.sha256()
    for name in files:
        digest.update(f"{name};".encode() + (folder / name).read_bytes())
    found["selfcorrect"] = f"{selfcorrect.__version__} (files {digest.hexdigest()[:8]})"
    return found | {name: version_of(name) for name in _COMPUTE}
