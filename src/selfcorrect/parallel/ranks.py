"""What one process does alone, and what several do together: the same calls, on every rank in the same order.

`Alone` is all that a single process knows of this folder. `Several` is DDP: every rank holds the whole model.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from selfcorrect.config import TrainConfig
from selfcorrect.errors import ConfigError, NumericalError, UserError
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.loading import load_model
from selfcorrect.models.sharded import fill, from_first
from selfcorrect.models.weights import fingerprint
from selfcorrect.parallel import shards
from selfcorrect.parallel.gradients import sum_gradients
from selfcorrect.parallel.launch import kind_of, refuse_unserved
from selfcorrect.parallel.lifeline import Lifeline
from selfcorrect.rollout import play
from selfcorrect.samplers.base import Sampler
from selfcorrect.types import Completion, Problem, Rollout, SamplingParams

_LOOKS = 20
T = TypeVar("T")
Trainer = TypeVar("Trainer", bound=Any)
Batch = TypeVar("Batch", bound=Any)  # learning/batching.py, which imports this


class Asked(Protocol):
    """What signals have asked of a process (runs/interrupts.py)."""

    asked: bool
    now: bool
    waits: bool
    signal: int


class Alone:
    """One process: nothing is split, nothing is waited for."""

    size, rank, sharded, shards = 1, 0, False, 1
    keeps_one = False  # whether the whole model is in the memory of rank 0's machine alone, and on no device
    shares_prompts = True  # whether an update computes the prompts that rollouts share once (learning/prompts.py)
    hosts: Sequence[str] = ()  # by rank, its host's name
    shares_disk = True  # whether every rank sees the run's folder; else it is rank 0's, who reads and writes it for all

    @property
    def notes(self) -> list[str]:
        """Lines for the user."""
        return []

    def settled(self, config: TrainConfig) -> "Alone":
        """As the recipe wants it. Raises ConfigError where the launch does not fit."""
        if config.parallel != "auto":
            raise ConfigError(
                f"parallel = {config.parallel!r} is for several processes, and this is one; start it with `torchrun "
                "--nproc-per-node N -m selfcorrect.cli train ...`, or set parallel=auto"
            )
        return self

    def load(self, config: TrainConfig) -> LanguageModel:
        """The model to train, as this rank needs it before `spread`. Raises ModelError."""
        return self.each(lambda: load_model(config.model, config.seed))

    def named(self, rank: int) -> str:
        """A rank in words, with its host where there are several."""
        return f"rank {rank}"

    def attach(self, stop: Asked, saved: Callable[[], str]) -> None:
        """stop: what signals ask for. saved: what is kept and how to go on, in words."""

    def reference(self, make: Any, config: TrainConfig, lm: LanguageModel) -> tuple[LanguageModel | None, str]:
        """What `make` (learning/policy.py) makes of the model as it is now, laid out as the ranks lay it out."""
        found: tuple[LanguageModel | None, str] = make(config, lm)
        return found

    def spread(self, trainer: Trainer) -> Trainer:
        """The trainer, its weights laid out over the ranks as these are."""
        return trainer

    def first(self, deed: Callable[[], T]) -> T:
        """What rank 0 comes to, on every rank: a value, or what it raised."""
        return deed()

    def every(self, deed: Callable[[], T]) -> list[T]:
        """What each rank comes to, by rank."""
        return [deed()]

    def each(self, deed: Callable[[], T]) -> T:
        """What this rank comes to; what another raises is raised here too."""
        return deed()

    def same(self, mine: Mapping[str, Any], todo: str) -> None:
        """Raises ConfigError, on all ranks, where one has something else than rank 0. mine: by what it is, in words."""

    def held(self, context: AbstractContextManager[T]) -> AbstractContextManager[T]:
        """A context that rank 0 enters alone; what it raises is raised on all ranks, which all ask what it gives."""
        return context

    def look_for(self, file: Path) -> None:
        """Settles `shares_disk`: whether all ranks see what rank 0 writes into a file of the run's folder."""

    def play(self, problems: Sequence[Problem], *args: Any, group: int = 1, **kwargs: Any) -> list[Rollout]:
        """`rollout.play` of all problems, each rank its own; group: how many of them stay together."""
        return play(problems, *args, **kwargs)

    def sample(self, sampler: Sampler, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> list[Completion]:
        """`Sampler.sample` of all prompts, each rank its own."""
        return sampler.sample(prompts, params)

    def folder(self, opened: Any, path: Path) -> Any:
        """The run's folder at `path`, which rank 0 alone has opened."""
        return opened

    def own(self, batch: Batch, group: int) -> Batch:
        """The rows of a whole step's batch that this rank trains on."""
        return batch

    def idle(self, batch: Batch, group: int, pieces: Callable[[Batch], int]) -> list[Batch]:
        """Micro-batches of no weight, one for each that another rank has more than this one, and would wait in.

        pieces: into how many a rank's rows are split.
        """
        return []

    def check_alike(self, lm: LanguageModel) -> None:
        """Raises NumericalError where ranks that hold the same weights do not."""

    def add_up(self, *tensors: Tensor) -> None:
        """Each becomes its sum over ranks, in place."""

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Each gradient becomes its sum over ranks."""

    def clip(self, parameters: Sequence[Tensor], most: float) -> float:
        """Scale the gradients so that their norm over all weights is at most this; returns what it was."""
        return float(torch.nn.utils.clip_grad_norm_(parameters, most))

    def whole(self, lm: LanguageModel, *, exact: bool = False) -> LanguageModel:
        """The model as a plain one, with all of its weights as they are now; exact: on rank 0 as those that train."""
        return lm

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Of ranks that are sharded: a checkpoint's tensors, in step. Raises OSError as any rank's disk does."""
        raise NotImplementedError

    def read(self, folder: Path, trainer: Any) -> dict[str, Tensor]:
        """A checkpoint's tensors, laid out as the trainer's are."""
        return self.handed(lambda: shards.tensors_in(folder), None)

    def handed(self, read: Callable[[], Mapping[str, Tensor]], model: Any) -> dict[str, Tensor]:
        """Tensors of the run's folder, as `load_weights` takes them for this model."""
        return dict(read())

    def asked(self, stop: Asked) -> bool:
        """Whether a signal asked any rank to stop."""
        return stop.asked

    def loss(self, error: Exception) -> str:
        """Which rank was lost, in words, where `error` came of that; else empty."""
        return ""


class OnFirst:
    """Stands in for an object that rank 0 alone has: a method is called there, and its result is everyone's."""

    def __init__(self, ranks: "Several", mine: Any, **known: Any) -> None:
        """mine: the object, on rank 0. known: attributes that all have."""
        self._ranks, self._mine = ranks, mine
        vars(self).update(known)

    def close(self) -> None:
        """Where this rank alone ends, of an error that others know nothing of, none of them is waited for."""
        if sys.exc_info()[0] is None or self._ranks.lifeline.agreed:
            self._ranks.first(lambda: self._mine.close())  # noqa: PLW0108 - other ranks have none
        elif self._mine is not None:
            self._mine.close()

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self._ranks.first(lambda: getattr(self._mine, name)(*args, **kwargs))


class Several(Alone):
    """What all ranks know of each other. stop: see `attach`."""

    def __init__(self, rank: int, size: int, objects: Any, lifeline: Lifeline, hosts: Sequence[str] = ()) -> None:
        """objects: the process group over which values go. hosts: by rank, the name of its host."""
        self.rank, self.size, self.objects, self.lifeline, self.hosts = rank, size, objects, lifeline, hosts
        self.stop: Asked | None = None
        self.served: Any = None  # a Served (parallel/served.py), where vLLM samples
        self._stopping = False

    @property
    def notes(self) -> list[str]:
        return [f"{self.size} processes, ddp: each holds the model, and gradients are summed", *self._of_disks()]

    def _of_disks(self) -> list[str]:
        if self.shares_disk:
            return []
        return [
            f"the run's folder is on {self.hosts[0]} alone: rank 0 reads and writes it for all, and has to be started "
            "there when the run goes on"
        ]

    def named(self, rank: int) -> str:
        return f"rank {rank} on {self.hosts[rank]}" if len(set(self.hosts)) > 1 else f"rank {rank}"

    def settled(self, config: TrainConfig) -> Alone:
        refuse_unserved(config)
        if kind_of(config.parallel) == "ddp":
            return self
        from selfcorrect.parallel.sharding import Sharded

        return Sharded(self, config)

    def attach(self, stop: Asked, saved: Callable[[], str]) -> None:
        self.stop, stop.waits, self.lifeline.saved = stop, True, saved

    def spread(self, trainer: Trainer) -> Trainer:
        if trainer.config.has_engine:
            from selfcorrect.parallel.served import served

            lm = trainer.lm
            trainer.sampler = self.served = served(self, trainer, lm, lambda: lm.model)
        return trainer

    def exchange(self, value: T, error: Exception | None = None, *, named: bool = True) -> list[T]:
        """Every rank's value, by rank. Where any has an error, the first one's is raised on all, with its rank.

        Where a signal asked any to stop, and none is within a step, KeyboardInterrupt is raised on all, once.
        """
        signum = int(self.stop.signal) if self.stop and self.stop.asked else 0
        told: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(told, (signum, error, value), group=self.objects)
        raised = [(rank, wrong) for rank, (_, wrong, _) in enumerate(told) if wrong is not None]
        if raised:
            self.lifeline.agreed = True
            everywhere = len({str(wrong) for _, wrong in raised}) == 1 and len(raised) == self.size
            raise raised[0][1] if everywhere or not named else _of_rank(self.named(raised[0][0]), raised[0][1])
        signum = max(signum for signum, _, _ in told)
        if signum and self.stop and self.stop.now and not self._stopping:
            self.stop.asked, self.stop.signal = True, signum
            self.lifeline.agreed = self._stopping = True
            raise KeyboardInterrupt
        return [value for _, _, value in told]

    def first(self, deed: Callable[[], T]) -> T:
        value, error = _tried(deed) if self.rank == 0 else (None, None)
        found: Any = self.exchange(value, error, named=False)[0]
        return found  # type: ignore[no-any-return]

    def every(self, deed: Callable[[], T]) -> list[T]:
        value, error = _tried(deed)
        found: list[Any] = self.exchange(value, error)
        return found

    def each(self, deed: Callable[[], T]) -> T:
        found = list[T]()
        self.every(lambda: found.append(deed()))
        return found[0]

    def same(self, mine: Mapping[str, Any], todo: str) -> None:
        first, *others = self.exchange(dict(mine))
        for rank, theirs in enumerate(others, 1):
            other = [name for name in {**first, **theirs} if first.get(name) != theirs.get(name)]
            if other:
                told = ", ".join(f"{name} = {theirs.get(name)} (not {first.get(name)})" for name in other[:3])
                more = f" and {len(other) - 3} more" if len(other) > 3 else ""
                self.lifeline.agreed = True
                raise ConfigError(f"{self.named(rank)} has other things than {self.named(0)}: {told}{more}; {todo}")

    @contextmanager
    def held(self, context: AbstractContextManager[T]) -> Iterator[T]:
        with ExitStack() as stack:
            mine = list[T]()
            self.first(lambda: mine.append(stack.enter_context(context)))
            yield cast(T, OnFirst(self, mine[0] if mine else None))

    def look_for(self, file: Path) -> None:
        word = f"{os.getpid()} {time.time_ns()}"  # a host may have a file of that name from an earlier run
        self.first(lambda: file.write_text(word, encoding="utf-8"))
        word = self.exchange(word)[0]

        def sees() -> bool:
            for _ in range(_LOOKS):  # network file systems take a moment, and ask again where a folder is listed
                with contextlib.suppress(OSError):  # which need not be allowed
                    os.listdir(file.parent.parent)
                with contextlib.suppress(OSError):
                    if file.read_text(encoding="utf-8") == word:
                        return True
                time.sleep(0.5)
            return False

        self.shares_disk = all(self.every(sees))
        self.first(lambda: file.write_text("", encoding="utf-8"))

    def folder(self, opened: Any, path: Path) -> Any:
        return OnFirst(self, opened, path=path, checkpoints=path / "checkpoints")

    def part(self, rows: int, group: int = 1, rank: int | None = None) -> slice:
        """A rank's run of rows, in whole groups. Ranks have as many groups as each other, or one more."""
        groups, rank = rows // group, self.rank if rank is None else rank
        return slice(groups * rank // self.size * group, groups * (rank + 1) // self.size * group)

    def play(self, problems: Sequence[Problem], *args: Any, group: int = 1, **kwargs: Any) -> list[Rollout]:
        mine = self.part(len(problems), group)

        def played() -> list[list[Rollout]]:
            return self.every(lambda: play(problems, *args, part=mine, **kwargs))

        return [rollout for own in (self.served.twice(played) if self.served else played()) for rollout in own]

    def sample(self, sampler: Sampler, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> list[Completion]:
        mine = self.part(len(prompts))
        of_all = self.every(lambda: sampler.sample(prompts[mine], replace(params, first=mine.start)))
        return [completion for own in of_all for completion in own]

    def own(self, batch: Batch, group: int, rank: int | None = None) -> Batch:
        mine = self.part(len(batch.length_B), group, rank)
        return replace(batch, **{field.name: getattr(batch, field.name)[mine] for field in fields(batch)})

    def check_alike(self, lm: LanguageModel) -> None:
        found = self.exchange(fingerprint(lm))
        other = next((rank for rank in range(self.size) if found[rank] != found[0]), None)
        if other is not None:
            self.lifeline.agreed = True
            raise NumericalError(
                f"{self.named(other)} has come to other weights than rank 0 ({found[other]}, not {found[0]}), so one "
                "of them computed wrongly, or in another way; see that all have the same hardware and libraries"
            )

    def handed(self, read: Callable[[], Mapping[str, Tensor]], model: Any) -> dict[str, Tensor]:
        return dict(read()) if self.shares_disk else self.sent(read, {})

    def sent(self, read: Callable[[], Mapping[str, Tensor]], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What rank 0 alone reads. like: tensors in shards, in which those of their names and shapes come."""
        found = dict[str, Tensor]()
        for name, source in self.hollow(read).items():
            shaped = like.get(name)
            if shaped is not None and shaped.shape == source.shape:
                found[name] = torch.zeros_like(shaped, dtype=source.dtype, requires_grad=False)
                fill(found[name], source)
            else:
                found[name] = from_first(source, torch.device("cpu"))
        return found

    def hollow(self, read: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """What rank 0 alone reads; on the others names, shapes and kinds."""
        mine = dict[str, Tensor]()

        def look() -> list[tuple[str, Any, torch.dtype]]:
            mine.update(read())
            return [(name, tensor.shape, tensor.dtype) for name, tensor in mine.items()]

        told = self.first(look)
        return mine or {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape, dtype in told}

    def add_up(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            torch.distributed.all_reduce(tensor, group=self.objects)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        sum_gradients(parameters)

    def asked(self, stop: Asked) -> bool:
        signum = max(self.exchange(int(stop.signal) if stop.asked else 0))
        if signum:
            stop.signal = signum
        return signum > 0

    def loss(self, error: Exception) -> str:
        text = str(error)
        of_others = isinstance(error, torch.distributed.DistError) or any(
            word in text for word in ("gloo", "NCCL", "onnection", "peer", "rocess group")
        )
        if isinstance(error, UserError) or not of_others:
            return ""
        loss = self.lifeline.wait(10.0)
        return str(loss) if loss else ""


def _tried(deed: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return deed(), None
    except (UserError, OSError) as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return None, error


def _of_rank(named: str, error: Exception) -> Exception:
    """The same kind of error, whose text says where it was raised."""
    if isinstance(error, UserError):
        with contextlib.suppress(TypeError):
            return type(error)(f"{named}: {error}")
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, f"{error.strerror} on {named}", error.filename)
    return error
