"""Recipes: what is refused, and that the message says where, what, which value and why."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcorrect.config import (
    Config,
    CustomConfig,
    LabBaseConfig,
    MultiTurn,
    OptimizerConfig,
    RolloutConfig,
    SingleTurn,
    StageOne,
    StageTwo,
    TrainConfig,
)
from selfcorrect.config.explain import explain
from selfcorrect.config.familiar import FAMILIAR
from selfcorrect.config.paths import absolute, check_paths
from selfcorrect.config.recipe import _fields, dump, load_recipe, validate
from selfcorrect.config.shipped import shipped_recipe, shipped_recipes
from selfcorrect.errors import ConfigError
from selfcorrect.runs.recipes import train_config

RECIPE = """\
name: demo
seed: 3
rollouts:
  rollouts_per_problem: 4
  temperature: 0.7
stages:
  - name: hold
    objective: stage1
    steps: 5
    learning_rate: 4e-5
  - name: correct
    objective: stage2
    steps: 7
    learning_rate: 1.5E-4
    alpha: 10
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    return file


def refusal(file: Path, text: str, *overrides: str) -> str:
    """The message with which this recipe is refused, the folder left out."""
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_recipe(file, overrides)
    return str(caught.value).replace(str(file), "recipe.yaml")


def test_a_recipe_is_read_as_written(recipe: Path) -> None:
    config = train_config(recipe)
    assert (config.name, config.seed, config.rollouts.rollouts_per_problem) == ("demo", 3, 4)
    first, second = config.stages
    assert isinstance(first, StageOne)
    assert isinstance(second, StageTwo)
    assert (first.learning_rate, second.learning_rate, second.alpha) == (4e-5, 1.5e-4, 10.0)  # 4e-5 is text in YAML 1.1
    assert (first.beta1, first.beta2, second.beta1, second.gamma) == (0.01, 0.1, 0.01, 0.0)
    assert config.total_steps == 12
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 4


@pytest.mark.parametrize(
    ("old", "new", "where", "parts"),
    [
        ("seed: 3", "sede: 3", "recipe.yaml:2", ["unknown key 'sede'", "did you mean 'seed'?"]),
        ("  temperature: 0.7", "  temprature: 0.7", "recipe.yaml:5", ["rollouts.temprature", "'temperature'"]),
        ("    alpha: 10", "    alhpa: 10", "recipe.yaml:15", ["stages.correct.alhpa", "'alpha'"]),
        ("seed: 3", "qqqqqq: 3", "recipe.yaml:2", ["unknown key 'qqqqqq'"]),
        ("seed: 3", "seed: three", "recipe.yaml:2", ["seed = 'three'", "valid integer"]),
        ("seed: 3", "seed: '3'", "recipe.yaml:2", ["seed = '3'", "valid integer"]),
        ("seed: 3", "seed: true", "recipe.yaml:2", ["seed = True", "valid integer"]),
        ("seed: 3", "seed: -1", "recipe.yaml:2", ["seed = -1", "greater than or equal to 0"]),
        ("  temperature: 0.7", "  temperature: 0", "recipe.yaml:5", ["rollouts.temperature = 0", "greater than 0"]),
        ("  temperature: 0.7", "  temperature: .inf", "recipe.yaml:5", ["rollouts.temperature = inf", "finite"]),
        ("    steps: 7", "    steps: 7.5", "recipe.yaml:13", ["stages.correct.steps = 7.5", "integer"]),
        ("    steps: 7\n", "", "recipe.yaml:11", ["stages.correct.steps is missing"]),
        ("    learning_rate: 4e-5", "    learning_rate: fast", "recipe.yaml:10", ["stages.hold.learning_rate = 'fast'"]),
        ("name: demo", "name: a/b", "recipe.yaml:1", ["name = 'a/b'"]),
        ("    name: hold", "    name: a b", "recipe.yaml:7", ["stages.0.name = 'a b'"]),
        ("seed: 3", "optimizer: {betas: [0.9]}", "recipe.yaml:2", ["optimizer.betas"]),
        ("seed: 3", "task: {prompt: solve it}", "recipe.yaml:2", ["task", "{numbers} and {target}"]),
        ("seed: 3", "task: {correction_prompt: '{grade}'}", "recipe.yaml:2", ["correction_prompt", "'grade'"]),
        ("seed: 3", "task: {max_number: 100, limit: 50}", "recipe.yaml:2", ["limit (50)", "max_number (100)"]),
        ("objective: stage2", "objective: stage3", "recipe.yaml:12", ["stages.correct", "'stage2'", "stage3"]),
        ("    objective: stage1", "    objective: stage1\n    alpha: 3", "recipe.yaml:9", ["unknown key 'stages.hold.alpha'; alpha is a setting of lora and of stages"]),
        ("    objective: stage1\n", "", "recipe.yaml:7", ["stages.hold: objective is missing; it must be one of 'stage1', 'stage2', 'annealed', 'single_turn'"]),
        ("seed: 3", "kind: trian", "recipe.yaml:2", ["kind = 'trian' must be one of 'train', "]),
    ],
)  # fmt: skip
def test_refusals_name_line_field_value_and_reason(
    recipe: Path, old: str, new: str, where: str, parts: list[str]
) -> None:
    text = (
        RECIPE.replace(f"- {old.strip()}", f"- {new.strip()}")
        if f"- {old.strip()}" in RECIPE
        else RECIPE.replace(old, new)
    )
    assert text != RECIPE
    message = refusal(recipe, text)
    assert message.startswith(f"{where}: ")
    for part in parts:
        assert part in message


def test_each_mistake_is_told_once(recipe: Path) -> None:
    """A wrong value in the only stage is one line: the stages are not also called too few."""
    message = refusal(recipe, RECIPE[: RECIPE.index("  - name: correct")].replace("steps: 5", "steps: x"))
    assert message == "recipe.yaml:9: stages.hold.steps = 'x': input should be a valid integer (Updates of the stage)"


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        ("rollouts: {rollouts_per_problem: 1}", "rollouts.rollouts_per_problem is 1"),
        ("algorithm: {normalize_std: true, baseline: none}", "normalize_std needs"),
        ("task: {data: problems.jsonl}", "task.data is for evaluation"),
    ],
)
def test_contradictions_have_a_line(tmp_path: Path, extra: str, part: str) -> None:
    stages = RECIPE[RECIPE.index("stages:") :]
    message = refusal(tmp_path / "recipe.yaml", f"{extra}\n{stages}")
    assert part in message
    assert message.startswith("recipe.yaml:1: ")


def test_contradictions_are_refused(recipe: Path) -> None:
    assert "got hold, hold" in refusal(recipe, RECIPE.replace("name: correct", "name: Hold"))
    assert "base is the name of the evaluation" in refusal(recipe, RECIPE.replace("name: correct", "name: Base"))
    assert "optimizer.betas.1 = 1" in refusal(recipe, RECIPE, "optimizer.betas=[0.9, 1]")
    last = RECIPE.replace("objective: stage2", "objective: multi_turn").replace("alpha: 10", "gamma: 0.8")
    assert "stages.correct: gamma > 0" in refusal(recipe, last)
    validate_text(recipe, last + "    rewarded: all\n")
    assert "multiple of heads" in refusal(recipe, "kind: lab_base\nhidden_size: 160\nheads: 7\n")
    assert "stages" in refusal(recipe, "seed: 1\n")
    refine = "rollouts: {self_refine: {feedback_prompt: a, refine_prompt: b}}\nstages:\n"
    assert "self_refine is prompting only" in refusal(
        recipe, refine + "- {name: a, objective: stage1, steps: 1, learning_rate: 1.0}"
    )
    star = "- {name: a, objective: star, steps: 4, learning_rate: 1.0}"
    assert "stages.a: steps (4) must be a multiple of iterations (3)" in refusal(recipe, f"stages:\n{star}\n")
    held_out = RECIPE + "checkpoint: {select: held_out}\n"
    assert "select: held_out and held_out: FILE belong together" in refusal(recipe, held_out)
    offline = RECIPE.replace("alpha: 10", "offline_first: 0.5") + "algorithm: {reference: previous_stage}\n"
    assert "recipe.yaml:" in refusal(recipe, offline)
    assert "algorithm.reference must be base where a stage has offline_first" in refusal(recipe, offline)
    few = RECIPE.replace("alpha: 10", "offline_first: 0.01")
    assert "offline_first = 0.01 of rollouts.problems_per_step = 48 is no whole problem" in refusal(recipe, few)


def validate_text(file: Path, text: str) -> TrainConfig:
    file.write_text(text, encoding="utf-8")
    return train_config(file)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- 1\n",
        "just text\n",
        "a: [1\n",
        "a: 1\n---\nb: 2\n",
        "\tname: x\n",
        "name: \x00\n",
        "name: !!python/object:os.system x\n",
        "? [a, b]\n: 1\n",
        "2024-01-01: x\n",
        "a: &x [*x]\n",
        "a0: &a0 [1, 2]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
        "task: {prompt: '{numbers.foo} {numbers} {target}'}\n",
        "task: {prompt: '{target[0]} {numbers} {target}'}\n",
        "task: {prompt: '{numbers:d} {target}'}\n",
        "task: {prompt: '{numbers!r} {target}'}\n",
        "task: {prompt: '{numbers} {target:{x}}'}\n",
    ],
)
def test_no_recipe_ends_in_a_traceback(recipe: Path, text: str) -> None:
    assert "recipe.yaml" in refusal(recipe, text)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such file"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="is a folder; name a YAML file"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: ä".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml: cannot be read"):
        load_recipe(tmp_path / "latin.yaml")


NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True).filter(lambda name: name.casefold() != "base")
DECAYS = st.floats(0, 1, exclude_max=True)
RATES = st.floats(min_value=1e-12, max_value=1e3)
COMMON = {"steps": st.integers(1, 10**6), "learning_rate": RATES, "beta1": st.floats(0, 1)}
STAGES = (
    st.builds(StageOne, objective=st.just("stage1"), name=NAMES, beta2=st.floats(0, 1), **COMMON)
    | st.builds(StageTwo, objective=st.just("stage2"), name=NAMES, alpha=st.floats(0, 20), **COMMON)
    | st.builds(SingleTurn, objective=st.just("single_turn"), name=NAMES, **COMMON)
    | st.builds(MultiTurn, objective=st.just("multi_turn"), name=NAMES, rewarded=st.just("all"), **COMMON)
)
CONFIGS = st.builds(
    TrainConfig,
    name=NAMES,
    seed=st.integers(0, 2**70),
    stages=st.lists(STAGES, min_size=1, max_size=3, unique_by=lambda stage: stage.name.casefold()).map(tuple),
    rollouts=st.builds(RolloutConfig, temperature=RATES),
    optimizer=st.builds(OptimizerConfig, betas=st.tuples(DECAYS, DECAYS)),
) | st.builds(LabBaseConfig, kind=st.just("lab_base"), learning_rate=RATES)


@given(CONFIGS)
def test_dump_and_load_give_the_same_config(tmp_path_factory: pytest.TempPathFactory, config: Config) -> None:
    file = tmp_path_factory.getbasetemp() / "dumped.yaml"
    file.write_text(dump(config), encoding="utf-8")
    assert load_recipe(file) == config


def test_validate_takes_a_plain_mapping() -> None:
    stage = {"name": "a", "objective": "single_turn", "steps": 1, "learning_rate": 1e-3}
    assert isinstance(validate({"stages": [stage]}), TrainConfig)
    with pytest.raises(ConfigError, match=r"^config: stages\.a\.steps = 'x'"):
        validate({"stages": [{**stage, "steps": "x"}]})
    given_stages = {"stages": [stage]}
    changed = validate(given_stages, overrides=["stages.a.steps=7", "seed=3"])
    assert isinstance(changed, TrainConfig)
    assert (changed.stages[0].steps, changed.seed, stage["steps"]) == (7, 3, 1)


TASK_MISTAKES = [
    ("task: {name: cuontdown}", "task: name = 'cuontdown' must be one of 'countdown', 'math', 'code', 'repair', 'custom'"),
    ("task: {name: 3}", "task"),
    ("task: {dataset: gsm8k}", "unknown key 'task.dataset'; dataset is a setting of tasks with name code and of tasks with name math"),
    ("task: {name: math, datset: gsm8k}", "unknown key 'task.datset'; did you mean 'dataset'?"),
    ("task: {name: math, dataset: gms8k}", "task.dataset = 'gms8k': input should be 'math' or 'gsm8k'"),
    ("task: {name: math, dataset: gsm8k, split: paper}", "task: split paper is MATH's"),
    ("task: {name: math, prompt: Solve it}", "task: prompt must hold {problem}, or the model cannot see the problem"),
    ("task: {name: math, prompt: '{problem} {box}'}", "task: prompt may use only {final_form} and {problem}"),
    ("task: {name: math, prompt: '{problem} in a \\\\boxed{}'}", "task: prompt may use only {final_form} and {problem}"),
    ("task: {name: math, prompt: '{problem} {'}", "task: prompt is not a template: "),
    ("task: {name: math, data: d, hub: {path: p}}", "task: data and hub both name where the problems come from"),
    ("task: {name: code, correction_prompt: 'Mend {task}'}", "task: correction_prompt has nothing to fill in"),
    ("task: {name: code, prompt: '{tests}'}", "task: prompt must hold {task}"),
    ("task: {name: code, completion_prompt: go on}", "task: completion_prompt must hold {code}"),
    ("task: {name: code, evaluate_data: d}", "task: evaluate_data and evaluate_hub belong to evaluate_on"),
    ("task: {name: code, shots: 4}", "task.shots = 4: input should be less than or equal to 3 (How many solved examples stand before an MBPP task)"),
    ("task: {name: code, hub: {pth: x}}", "unknown key 'task.hub.pth'; did you mean 'path'?"),
    ("task: {name: repair}", "task.data is missing"),
    ("task: {name: repair, data: d, of: {name: maths}}", "task.of: name = 'maths' must be one of 'math', 'code'"),
    ("task: {name: repair, data: d, of: {shots: x}}", "task.of.shots = 'x': input should be a valid integer (How many solved examples"),
    ("task: {name: custom}", "task.file is missing"),
    ("model: {template_options: {enable_thinking: [1]}}", "model.template_options.enable_thinking"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("checkpoint.save_steps=3", "here it is checkpoint.every"),
        ("checkpoint.evry=3", "did you mean 'every'?"),
        ("checkpoint.stps=3", "did you mean 'steps'?"),  # nothing near it in its own section
        ("stages.a.lr=3", "here it is learning_rate of a stage"),
        ("stages.a.lerning_rate=3", "did you mean 'learning_rate'?"),
        ("num_generations=8", "here it is rollouts.rollouts_per_problem"),
        ("optimizer.lr=1", "here it is learning_rate of a stage"),
        ("rollouts.top_p=0.9", "here it is none: sampling takes the whole distribution"),
        ("model.torch_dtype=bfloat16", "here it is model.precision"),
        ("max_new_tokens=8", "max_new_tokens is a setting of rollouts"),
        ("task.colums={}", "did you mean 'columns'?"),
        ("model.lora.dropout=0.1", "here it is none: dropout would make"),
        ("model.lora.bias=none", "here it is none: the adapters of linear layers train"),
        ("deepspeed=x", "here it is parallel (ddp or fsdp2)"),
        ("vllm.tensor_parallel_size=2", "here it is none: start a vLLM server with --tensor-parallel-size"),
        ("model.rollout=1", "did you mean 'rollouts'?"),
        ("qwertz=1", "`selfcorrect check` prints every setting"),
    ],
)
def test_hints_know_the_section_and_other_trainers_names(override: str, hint: str) -> None:
    stage = {"name": "a", "objective": "stage1", "steps": 1, "learning_rate": 1.0}
    task = {"name": "math"} if override.startswith("task") else {}
    with pytest.raises(ConfigError) as error:
        validate({"stages": [stage], "task": task}, overrides=[override])
    assert str(error.value).endswith(hint) or f"; {hint}" in str(error.value)


def test_what_other_trainers_call_a_setting_is_none_of_ours() -> None:
    assert not set(FAMILIAR) & {name for name, _ in _fields()}


def test_explain_knows_every_name_on_the_page_for_those_from_trl() -> None:
    page = (Path(__file__).parents[2] / "docs/from-trl.md").read_text(encoding="utf-8")
    names = [name for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert len(names) > 30
    assert all(explain(name) for name in names)  # which raises where it knows nothing


def test_paths_in_a_recipe_are_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of overrides are of the current one; the user's own options are nobody's paths."""
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / "recipe.yaml"
    told = {
        "model": {"path": "./model"},
        "task": {"name": "custom", "file": "task.py", "options": {"file": "as it is"}},
        "evaluation": {
            "external": ["a.jsonl", "/b.jsonl"],
            "correction_prompts": {"file": "Check it.", "data": "Solve it again."},
        },
        "stages": [{"name": "a", "objective": "pair_sft", "steps": 1, "learning_rate": 1.0, "traces": "../t.jsonl"}],
    }
    file.write_text(json.dumps(told))
    monkeypatch.chdir(tmp_path)
    config = train_config(Path("mine/recipe.yaml"), "checkpoint.held_out=h.jsonl", "checkpoint.select=held_out")
    assert isinstance(config.task, CustomConfig)
    assert (config.model.path, config.task.file, config.task.options) == (
        "mine/model",
        "mine/task.py",
        {"file": "as it is"},
    )
    assert config.evaluation.external == ("mine/a.jsonl", "/b.jsonl")
    assert config.evaluation.correction_prompts == {"file": "Check it.", "data": "Solve it again."}
    file.write_text(json.dumps({"sampler": "recorded", "recorded": "log.jsonl", "stages": []}))
    assert absolute(train_config(Path("mine/recipe.yaml"))).recorded == str(tmp_path / "mine" / "log.jsonl")
    assert config.stages[0].traces == "mine/../t.jsonl"  # type: ignore[union-attr]
    assert config.checkpoint.held_out == "h.jsonl"
    with pytest.raises(ConfigError, match=r"task.file = 'mine/task.py': no such file or folder"):
        check_paths(config)


@pytest.mark.parametrize("held_out", ["a/t.jsonl", "b/t.jsonl", "b/other.jsonl"])
def test_the_file_that_chooses_weights_has_a_name_of_its_own(recipe: Path, held_out: str) -> None:
    told = ["evaluation.external=[a/t.jsonl]", "checkpoint.select=held_out", f"checkpoint.held_out={held_out}"]
    if held_out != "b/t.jsonl":  # another name, or the same file for both
        load_recipe(recipe, told)
        return
    with pytest.raises(ConfigError, match=r"checkpoint.held_out = '.*b/t.jsonl': has the file name of evaluation.ext"):
        load_recipe(recipe, told)


@pytest.mark.parametrize("name", ["demo", "demo.yaml", "recipes/demo.yaml", "recipes/demo"])
def test_shipped_recipes_are_found_from_anywhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # no recipe
    assert load_recipe(name) == load_recipe(shipped_recipe("demo"))
    dotted = "math_qwen2.5-1.5b-instruct"
    assert load_recipe(name.replace("demo", dotted)) == load_recipe(shipped_recipe(dotted))
    with pytest.raises(ConfigError, match="demo: is a folder"):
        load_recipe(tmp_path / "demo")
    (tmp_path / "demo.yaml").write_text("one's own")
    with pytest.raises(ConfigError, match="demo.yaml must be a mapping" if name == "demo.yaml" else "no such|must"):
        load_recipe("demo.yaml")
    with pytest.raises(ConfigError, match=r"recipes/demo\.yaml: no such file"):  # a folder of that name elsewhere
        load_recipe(tmp_path / "recipes" / "demo.yaml")


def test_every_shipped_recipe_says_what_it_is() -> None:
    told = shipped_recipes()
    assert {"demo", "countdown", "compare_lab"} <= set(told)
    assert all(len(about) > 10 for about in told.values())


@pytest.mark.parametrize(("line", "part"), TASK_MISTAKES)
def test_mistakes_in_a_task_have_a_line(tmp_path: Path, line: str, part: str) -> None:
    stages = RECIPE[RECIPE.index("stages:") :]
    message = refusal(tmp_path / "recipe.yaml", f"{line}\n{stages}")
    assert message.startswith("recipe.yaml:1: ")
    assert part in message
    assert not {".countdown", ".math", ".code"} & set(re.findall(r"\.\w+", message.split(";")[0]))


def test_repair_leaves_a_single_turn_stage_nothing(recipe: Path) -> None:
    text = RECIPE.replace("objective: stage1", "objective: single_turn") + "task: {name: repair, data: d}\n"
    assert "recipe.yaml:16: the recipe: task.name repair gives attempt 1" in refusal(recipe, text)


@pytest.mark.parametrize(
    "task",
    [
        {"name": "math", "dataset": "gsm8k", "hub": {"path": "a/b", "name": ["x", "y"]}},
        {"name": "code", "evaluate_on": "humaneval_plus", "prompt": "{{}} {task}", "time_cap": 3.0},
        {"name": "repair", "data": "/d.jsonl", "of": {"name": "math"}},
        {"name": "repair", "data": "/d.jsonl", "of": {"shots": 0}},
        {"name": "custom", "file": "/t.py", "options": {"a": [1, {"b": None}], "c": "12e7"}},
        {"max_number": 50},
        {},
    ],
)
def test_every_task_survives_a_dump(recipe: Path, task: dict[str, Any]) -> None:
    config = validate({"stages": [STAGE], "task": task, "model": {"template_options": {"date_string": "1 May 2025"}}})
    recipe.write_text(dump(config), encoding="utf-8")
    assert load_recipe(recipe) == config
    assert isinstance(config, TrainConfig)
    assert config.task.name == task.get("name", "countdown")


STAGE = {"name": "a", "objective": "stage2", "steps": 1, "learning_rate": 1e-3}
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_shipped_recipes_are_valid(file: Path) -> None:
    config = load_recipe(file)
    if not isinstance(config, TrainConfig) or config.task.name not in ("math", "code"):
        return
    # Table 5: 3000 steps of 512 rollouts for MATH, 1500 of 128 for code.
    table = {"math": (3000, 512, 5e-6, 0.1), "code": (1500, 128, 1e-5, 0.25)}
    steps, batch, rate, beta2 = table[config.task.name]
    rate *= 1 if config.model.tuning == "full" else 10
    first, second = config.stages
    assert isinstance(first, StageOne)
    assert isinstance(second, StageTwo)
    assert config.total_steps == steps
    assert config.rollouts.problems_per_step * config.rollouts.rollouts_per_problem == batch
    assert (first.learning_rate, second.learning_rate) == pytest.approx((rate, rate))
    assert config.rollouts.temperature == 1.0
    assert (first.beta1, first.beta2, second.beta1, second.alpha) == (0.01, beta2, 0.01, 10.0)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "rollouts.rows_at_once=Auto",
            "rows_at_once = 'Auto': input should be a valid integer, or 'auto' (How many rollouts are sampled side by side)",
        ),
        (
            "optimizer.micro_batch=0",
            "micro_batch = 0: input should be greater than 0, or 'auto' (Rollouts in one forward and backward pass)",
        ),
    ],
)
def test_a_value_that_fits_no_member_of_a_union_is_one_mistake(override: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        validate({"stages": []}, overrides=[override])
    assert str(refused.value).endswith(told)
    assert "\n" not in str(refused.value)
