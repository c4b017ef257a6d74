"""The settings of `selfcorrect compare`: methods, seeds, a budget, and a search that is the same for all of them."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from selfcorrect.config.base import NonNegative, Positive, Rate, Strict

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,39}$")]


class MethodConfig(Strict):
    """One line of the table. settings: laid over `common`, mapping by mapping; its stages are the method.

    label: how the table calls it. paper: the row of the paper's table that stands beneath it.
    """

    name: Name
    label: str
    settings: dict[str, Any]
    paper: str | None = None


class BudgetConfig(Strict):
    """What a method may use in one run: sampled completions (attempts), and gradient updates."""

    completions: Positive
    updates: Positive


class SearchConfig(Strict):
    """Every trained method is tried with each pair of settings before the table's runs; the best one is taken.

    learning_rate: factors on each stage's own; beta1: values, for RL stages. A trial takes `share` of every stage's
    steps, with a seed of its own, and is judged by greedy accuracy of the last attempt on `problems` training problems.
    """

    learning_rate: Annotated[tuple[Rate, ...], Field(min_length=1)]
    beta1: Annotated[tuple[NonNegative, ...], Field(min_length=1)]
    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    seed: Annotated[int, Field(ge=0)] = 1000
    problems: Positive = 500


class CompareConfig(Strict):
    """common: a recipe without stages, seed, name and output. against: the method that others are compared with.
    only: names of those methods that are to be run and shown; by default all.

    parallel: runs side by side; each gets its share of the cores. resamples: of the bootstrap. paper: which of the
    paper's tables stands beside ours. repair: a task of name repair, on which every method's model is evaluated too
    (MBPP-R).
    """

    kind: Literal["compare"]
    name: Name
    output: str = "runs"
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    parallel: Positive = 1
    common: dict[str, Any]
    budget: BudgetConfig
    search: SearchConfig | None = None
    methods: Annotated[tuple[MethodConfig, ...], Field(min_length=1)]
    against: str
    only: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    paper: Literal["math", "humaneval"] = "math"
    resamples: Positive = 2000
    repair: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [method.name.casefold() for method in self.methods]
        if len(set(names)) < len(names):
            raise ValueError(f"methods: names must differ in more than case, got {', '.join(names)}")
        if "base" in names:
            raise ValueError("methods: base is the base model's line of the table; choose another name")
        if self.against not in [method.name for method in self.methods]:
            raise ValueError(f"against: {self.against} is none of the methods: {', '.join(names)}")
        if self.only is not None:
            known = [method.name for method in self.methods]
            if unknown := [name for name in self.only if name not in known]:
                raise ValueError(f"only: {unknown[0]} is none of the methods: {', '.join(known)}")
            if self.against not in self.only:
                raise ValueError(f"only: leaves out {self.against}, which the others are compared with; name it too")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: each seed once")
        if self.search and self.search.seed in self.seeds:
            raise ValueError(f"search.seed {self.search.seed} is one of seeds; the search needs a seed of its own")
        if self.repair is not None and self.repair.get("name") != "repair":
            raise ValueError(f"repair.name must be repair, got {self.repair.get('name')!r}")
        for key in ("stages", "seed", "name", "output", "kind"):
            if key in self.common:
                raise ValueError(f"common.{key} is set by each method and seed; leave it out")
        return self
