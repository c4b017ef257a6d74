"""The settings of `selfcorrect compare`: methods, seeds, a budget, and a search that is the same for all of them."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from selfcorrect.config.base import LocalPath, NonNegative, Paper, Positive, Rate, Strict

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,39}$")]


class MethodConfig(Strict):
    """One line of the table."""

    name: Name
    """The method's name, by which its runs and `only` go."""
    label: str
    """How the table calls it."""
    settings: dict[str, Any]
    """Laid over `common`, mapping by mapping; its stages are the method."""
    paper: str | None = None
    """The row of the paper's table that stands beneath it, where the comparison shows one (`paper`)."""


class BudgetConfig(Strict):
    """What a method may use in one run."""

    completions: Annotated[Positive, Paper("same sample budget for every method")]
    """Sampled completions, which are attempts."""
    updates: Annotated[Positive, Paper("same gradient budget for every method")]
    """Gradient updates."""


class SearchConfig(Strict):
    """Every trained method is tried with each pair of settings before the table's runs; the best one is taken.

    A trial has a seed of its own and is judged by greedy accuracy of the last attempt on training problems.
    """

    learning_rate: Annotated[tuple[Rate, ...], Field(min_length=1)]
    """Factors on each stage's own learning rate."""
    beta1: Annotated[tuple[NonNegative, ...], Field(min_length=1), Paper("beta1, Eq. 2 to 4")]
    """Values of beta1, for RL stages."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """The share of every stage's steps that a trial takes."""
    seed: Annotated[int, Field(ge=0)] = 1000
    """The trials' seed, which must be none of the table's."""
    problems: Positive = 500
    """Training problems that a trial is judged on."""


class CompareConfig(Strict):
    """A comparison of methods under one budget: `selfcorrect compare`."""

    kind: Literal["compare"]
    """compare: many methods and seeds, one table."""
    name: Name
    """The comparison's name; its folder is output/name."""
    output: LocalPath = "runs"
    """The folder that holds the comparison's."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    """Every method runs once with each of them."""
    parallel: Positive = 1
    """Runs side by side; each gets its share of the cores."""
    common: dict[str, Any]
    """A recipe of kind train, without stages, seed, name and output, for all methods."""
    budget: BudgetConfig
    """What a method may use in one run."""
    search: SearchConfig | None = None
    """The search over settings before the table's runs; none by default."""
    methods: Annotated[tuple[MethodConfig, ...], Field(min_length=1)]
    """The methods, one a line of the table."""
    against: str
    """The method that the others are compared with."""
    only: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of those methods that are to be run and shown; by default all."""
    paper: Annotated[Literal["math", "humaneval"] | None, Paper("Tables 1, 2 and 4, or Table 3")] = None
    """Which of the paper's tables stands beneath ours; by default that of the data set evaluated on, where the paper
    has one. Named with other data, it is headed as of another task."""
    resamples: Positive = 2000
    """Resamples of the bootstrap."""
    repair: Annotated[dict[str, Any] | None, Paper("MBPP-R, Table 3")] = None
    """A task of name repair, on which every method's model is evaluated too."""

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
                named = ",".join(self.only)
                raise ValueError(
                    f"only: [{named}] leaves out {self.against}, which the others are compared with (against: "
                    f"{self.against}); add it, as in only=[{named},{self.against}], or compare with one of them, as in "
                    f"against={self.only[0]}"
                )
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
