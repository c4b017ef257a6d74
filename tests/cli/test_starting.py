"""What a newcomer calls: `init` writes a recipe that checks and reads its data."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml

from selfcorrect.config import TrainConfig
from selfcorrect.config.recipe import load_recipe
from selfcorrect.config.run import LoraConfig
from selfcorrect.config.yaml12 import Loader
from selfcorrect.errors import ConfigError, DataError, UserError
from selfcorrect.runs.recipes import train_config
from selfcorrect.starting.columns import answer_of
from selfcorrect.starting.init import Tuning, init
from selfcorrect.tasks import make_task
from selfcorrect.tasks.code import CodeTask
from selfcorrect.tasks.custom import CustomTask
from selfcorrect.tasks.files import Row
from selfcorrect.tasks.math import MathTask
from selfcorrect.types import Outcome
from tests.conftest import Called, Command
from tests.support.data import mbpp_row

GSM = [{"question": f"What is {n} + {n}?", "answer": f"Twice {n}.\n#### {2 * n}"} for n in range(20)]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which colour?"}]
WORDS = [
    {
        "prompt": [CHAT[0], {"role": "user", "content": f"Which colour?\u2028Say it. {n}"}],
        "ground_truth": ["red", "blue"][n % 2],
    }
    for n in range(12)
]
XTUNER = [
    {
        "data_source": "x",
        "prompt": [{"role": "user", "content": f"2 + {n}?"}],
        "reward_model": {"ground_truth": str(2 + n), "style": "rule"},
        "extra_info": {"question": f"Two and {n}?", "index": n},
    }
    for n in range(10)
]
MBPP = [mbpp_row(n) for n in (2, 3, 4, 11, 601)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a model beside it that has a chat template, as far as files tell."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    return tmp_path


def written(file: str, rows: list[dict[str, Any]]) -> Path:
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        path.write_text(
            "question,answer\n" + "".join(f'"{r["question"]}","{r["answer"]}"\n' for r in rows), encoding="utf-8-sig"
        )
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def task_of(recipe: str) -> tuple[TrainConfig, MathTask | CodeTask | CustomTask]:
    config = train_config(recipe)
    task = make_task(config.task)
    assert isinstance(task, MathTask | CodeTask | CustomTask)
    return config, task


@pytest.mark.parametrize(
    ("file", "rows", "columns", "kind", "counts", "asked"),
    [
        ("d.jsonl", GSM, {}, "math", (18, 2), "What is 0 + 0?"),
        ("d.csv", GSM, {}, "math", (18, 2), "What is 0 + 0?"),
        ("d.parquet", GSM, {}, "math", (18, 2), "What is 0 + 0?"),
        ("d.json", [{"Q": r["question"], "A": n, "id": n} for n, r in enumerate(GSM)], {"question": "Q", "answer": "A"}, "math", (18, 2), "What is 0 + 0?"),
        ("d.jsonl", [{"problem": f"{n}?", "solution": f"So \\boxed{{{n}}}"} for n in range(3)], {}, "math", (2, 1), "0?"),
        ("d.jsonl", [{"text": f"{n}?", "label": ["a\\frac12", "-x"][n % 2]} for n in range(2)], {}, "math", (1, 1), "0?"),
        ("d.jsonl", WORDS, {}, "custom", (11, 1), "Which colour?"),
        ("d.jsonl", XTUNER, {}, "math", (9, 1), "2 + 0?"),
        ("d.jsonl", XTUNER, {"question": "extra_info.question"}, "math", (9, 1), "Two and 0"),
        ("d.jsonl", [{"q": f"Is it? {n}", "a": "yes"} for n in range(30)], {"question": "q", "answer": "a"}, "custom", (27, 3), "Is it?"),
        ("d.jsonl", [*GSM, {"question": "Who knows?", "answer": None}], {}, "math", (18, 2), "What is 0 + 0?"),
        ("mbpp.jsonl", MBPP, {}, "code", (1, 1), "Task: Write a function that adds 601."),
    ],
)  # fmt: skip
def test_init_writes_a_recipe_that_reads_its_data(
    file: str, rows: list[Any], columns: dict[str, str], kind: str, counts: tuple[int, int], asked: str, here: Path
) -> None:
    told = init(
        "model", written(file, rows), Path("mine.yaml"), question=columns.get("question"), answer=columns.get("answer")
    )
    assert told[-1] == "written: mine.yaml"
    config, task = task_of("mine.yaml")
    assert (config.task.name, len(task.train), len(task.test)) == (kind, *counts)
    assert asked in next(iter(task.train)).prompt
    assert config.model.chat_template is None
    assert config.model.system_prompt == ("Be brief." if rows is WORDS else None)
    assert "# Weight of the bonus alpha" in Path("mine.yaml").read_text(encoding="utf-8")


def test_a_recipe_elsewhere_reads_the_same_data(here: Path) -> None:
    """Paths in it are of its folder; it may be moved with what lies beside it."""
    init("./model", written("data.jsonl", GSM), Path("deep/er/mine.yaml"))
    shutil.move("deep/er", "moved")
    config, task = task_of("moved/mine.yaml")
    assert len(task.train) == 18
    assert Path(config.model.path) == here / "model"


@pytest.mark.parametrize("name", ["a\nseed: 5", 'q"""\\uq', "it's: a #1", "é ü", "-dash", "x" * 100])
def test_odd_names_of_files(name: str, here: Path) -> None:
    init("model", written(f"{name}.jsonl", WORDS), Path(f"{name}.yaml"))
    config, task = task_of(f"{name}.yaml")
    assert (config.seed, len(task.train)) == (0, 11)
    assert re.search("[a-z0-9]", config.name)  # it is a folder's name


def test_a_folder_of_texts_stays_as_it_is(here: Path) -> None:
    rows = [{"exercise": f"{n}?", "result": str(n)} for n in range(6)]
    written("own/train.jsonl", rows[:4]), written("own/test.jsonl", rows[4:])
    told = init("model", Path("own"), Path("mine.yaml"), question="exercise", answer="result")
    assert told[-1:] == ["written: mine.yaml"]
    assert not list(here.glob("mine-data"))
    task = task_of("mine.yaml")[1]
    assert (len(task.train), len(task.test)) == (4, 2)


@pytest.mark.parametrize(("count", "distinct"), [(40, 11), (30, 15), (10, 5), (4, 2), (2, 2)])
def test_no_question_is_trained_on_and_held_out(count: int, distinct: int, here: Path) -> None:
    """A question is held out with all its rows; the task math drops what is asked on both sides."""
    rows = [{"question": f"{n % distinct} + 1?", "answer": f"{n % distinct + 1}"} for n in range(count)]
    init("./model", written("d.jsonl", rows), Path("mine.yaml"))
    train, test = (Path(f"mine-data/{split}.jsonl").read_text().splitlines() for split in ("train", "test"))
    assert len(test) == max(1, distinct // 10) * count // distinct or distinct == 11
    assert not set(train) & set(test)
    assert len(train) + len(test) == count


def test_numbers_that_are_missing_and_rows_without_an_answer(here: Path) -> None:
    """NaN is how tables write what is missing; every tenth is held out of the rows that have an answer."""
    numbers = [float("nan") if n % 10 == 9 else float(n) for n in range(30)]
    table = pyarrow.table({" Question": [f"{n} + 0?" for n in range(30)], "answer": numbers})
    pyarrow.parquet.write_table(table, "d.parquet")
    told = init("model", Path("d.parquet"), Path("mine.yaml"))
    assert "left out, as they hold no answer: 3 rows" in told
    config, task = task_of("mine.yaml")
    assert (config.task.name, len(task.train), len(task.test)) == ("math", 25, 2)
    assert "nan" not in Path("mine-data/train.jsonl").read_text().lower()
    odd = [{"a.b": f"{n} + 1?", "a": {"b": "another"}, "answer": n + 1} for n in range(12)]
    init("model", written("odd.jsonl", odd), Path("odd.yaml"), question="a.b")
    assert "5 + 1?" in Path("odd-data/train.jsonl").read_text()


@pytest.mark.parametrize(
    ("answer", "task"),
    [("Paris 3", "custom"), ("x^2 + 1", "math"), ("\\text{even}", "math"), ("12 cm", "math"), ("page two, line 4", "custom"),
     ("pi/2", "math")],
)  # fmt: skip
def test_words_with_a_number_are_no_formula(answer: str, task: str, here: Path) -> None:
    rows = [{"question": f"{n}?", "answer": answer} for n in range(20)]
    init("./model", written("d.jsonl", rows), Path("mine.yaml"))
    assert train_config("mine.yaml").task.name == task


def test_the_custom_task_grades(here: Path) -> None:
    init("model", written("d.jsonl", WORDS), Path("my-words.yaml"))
    task = task_of("my-words.yaml")[1]
    red = next(iter(task.train))
    texts = ["Answer: red", "so\nanswer:  **Red**.\n", "red", "", "Answer: red\nAnswer: blue", "Answer: " + "x" * 9999]
    texts += ["Answer\uff1a\uff32\uff45\uff44\u3002"]  # as full-width letters, colon and full stop
    grades = task.grade([(red, text) for text in texts])
    assert [grade.outcome == Outcome.CORRECT for grade in grades] == [True, True, *[False] * 4, True]
    assert "wrong" in task.correction_prompt(red)


@pytest.mark.parametrize(
    ("config", "template"), [("{}", "plain"), ('{"chat_template": "x"}', None), ("not json", "plain"), ("[]", "plain")]
)
def test_a_base_model_gets_the_plain_template(config: str, template: str | None, here: Path) -> None:
    Path("model/tokenizer_config.json").write_text(config)
    init("model", written("d.jsonl", GSM), Path("mine.yaml"))
    assert train_config("mine.yaml").model.chat_template == template


@pytest.mark.parametrize(
    ("adapter", "tuning", "expected"),
    [
        (False, None, ("full", "float32", 5e-6)),
        (False, "lora", ("lora", "bfloat16", 5e-5)),
        (False, "qlora", ("qlora", "bfloat16", 5e-5)),
        (True, None, ("lora", "float32", 5e-5)),  # of its own rank, over the base as it is
        (True, "full", ("full", "float32", 5e-6)),
    ],
)
def test_an_adapter_trains_at_ten_times_the_rate(
    adapter: bool, tuning: Tuning | None, expected: tuple[str, str, float], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfcorrect.models.loading.native_bfloat16", lambda device: True)
    if adapter:
        Path("model/adapter_config.json").write_text("{}")
    init("model", written("d.jsonl", GSM), Path("mine.yaml"), tuning=tuning)
    config: Any = load_recipe("mine.yaml")
    assert (config.model.tuning, config.model.weights, config.stages[1].learning_rate) == expected
    assert config.model.lora.rank == (32 if expected[1] == "bfloat16" else LoraConfig().rank)


def test_init_writes_bfloat16_where_the_machine_multiplies_in_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfcorrect.models.loading.native_bfloat16", lambda device: False)
    init("model", written("d.jsonl", GSM), Path("mine.yaml"), tuning="lora")
    config: Any = load_recipe("mine.yaml")
    assert (config.model.weights, config.model.lora.rank) == ("float32", 32)
    words = Path("mine.yaml").read_text().replace("#", "").split()
    assert "For a card set bfloat16: half the memory." in " ".join(words)


def test_init_writes_bfloat16_on_apple_silicon(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfcorrect.models.loading.pick_device", lambda named: torch.device("mps"))
    init("model", written("d.jsonl", GSM), Path("mine.yaml"), tuning="lora")
    assert yaml.load(Path("mine.yaml").read_text(), Loader)["model"]["weights"] == "bfloat16"


@pytest.mark.parametrize(
    ("option", "told"),
    [(["--tuning", "dora"], "--tuning dora: must be full, lora or qlora"), (["--task", "maths"], "must be math, code")],
)
def test_init_knows_three_words_of_each(
    option: list[str], told: str, here: Path, called: Called, command: Command
) -> None:
    words = ["init", "--model", "model", "--data", str(written("d.jsonl", GSM))]
    assert told in called(*words, *option).err
    command(*words, "--tuning", "lora", "--task", "math")
    assert "tuning: lora" in Path("recipe.yaml").read_text()


REFUSED = [
    ({"data": "none.jsonl"}, GSM, r"^--data none.jsonl: no such file or folder "),
    ({"model": "./gone"}, GSM, r"^--model ./gone: no such folder$"),
    ({"model": "empty"}, GSM, r"^--model empty: the folder holds no model"),
    ({"model": "lab"}, GSM, r"countdown alone"),
    ({"to": "mine.txt"}, GSM, r"ends with .yaml"),
    ({"question": "Question"}, GSM, r"^--question Question: the data has no such column; it has answer, question$"),
    ({"answer": "gold"}, GSM, r"^--answer gold: the data has no such column; it has answer, question$"),
    ({}, [{"frage": "?", "antwort": "1"}] * 3, r"^--question: no column goes by a usual name; name one of antwort, frage$"),
    ({}, [{"question": "?", "reply": "1"}] * 3, r"^--answer: no column goes by a usual name; name one of reply$"),
    ({}, [{"question": "?", "answer": "a long story " * 40}] * 3, r"^--answer answer: its texts are long and state no"),
    ({}, [{"question": " ", "answer": "1"}] * 3, r"field 'question' is empty$"),
    ({}, [{"question": "?", "answer": [1]}] * 3, r"field 'answer' must be text, got \[1\]$"),
    ({}, [{"prompt": [{"role": "assistant", "content": "x"}], "answer": "1"}] * 3, r"a conversation of one user turn"),
    ({}, [{"prompt": [*CHAT], "answer": "1"}, {"prompt": "x", "answer": "1"}] * 3, r"has another system turn"),
    ({}, [{"messages": [*CHAT, {"role": "assistant", "content": "x"}]}] * 3, r"^--question: rows of whole conversations"),
    ({}, [{"prompt": [{"role": "user", "content": f"{n} \ud83d?"}], "answer": "red"} for n in range(9)], r"d.jsonl:1: field 'prompt' holds half a surrogate pair"),
    ({}, [{"prompt": [{"role": "system", "content": "\ud83d"}, CHAT[1]], "answer": "red"}] * 3, r"half a surrogate pair"),
    ({}, GSM[:1], r"holds one row; some are needed"),
    ({}, [{"question": "?", "answer": ""}] * 3, r"^--answer answer: no row to train on"),
    ({}, [{"question": f"{n}?", "answer": float("nan")} for n in range(9)], r"^--answer answer: no row to train on"),
    ({}, [{"question": "?", "answer": None}] * 3, r"^--answer: the column answer holds nothing"),
    ({}, [*GSM, {"question": "x?", "answer": float("inf")}], r"d.jsonl:21: field 'answer' is inf, which is no number"),
    ({}, [{"question": "1 + 1?", "answer": 2}] * 9, r"^--question question: all rows ask the same"),
    ({}, [{"question": f"{n}?"} for n in range(9)], r"^--answer: there is only the column 'question'; the answers are missing$"),
    ({}, [{"frage": f"{n}?"} for n in range(9)], r"^--question: there is only the column 'frage'; questions and answers are"),
    ({}, [{"question": "Which?", "answer": "red"}] * 9, r"^--question question: all rows ask the same"),
    ({"answer": "question"}, GSM, r"^--answer question: is the column of the question, too"),
    ({"question": "\ud83d", "answer": "a"}, [{"\ud83d": "1 + 1?", "a": "2"}] * 3, r"^--question '\\ud83d': holds half"),
    ({}, [{"prompt": [CHAT[0], *CHAT], "answer": "red"}] * 3, r"one system turn at most, which is text"),
    ({}, [{"prompt": [{"role": "system", "content": None}, CHAT[1]], "answer": "red"}] * 3, r"one system turn at most"),
    ({}, [{"nums": [3, 7, 12], "target": 22}] * 3, r"these are countdown's rows"),
    ({}, [{"input": "3,7,12", "output": "22"}] * 3, r"these are countdown's rows"),
    ({"task": "code"}, GSM, r"reads MBPP's columns .* this has answer, question"),
    ({}, [row | {"task_id": 9000 + n} for n, row in enumerate(MBPP)], r"task_id 601 to 974, and there is none"),
]  # fmt: skip


def test_a_number_of_many_digits_is_an_answer() -> None:
    assert answer_of(Row("d:1", {"answer": 10**400}), "answer") == "1" + "0" * 400


@pytest.mark.parametrize(("options", "rows", "told"), REFUSED)
def test_what_init_refuses(options: dict[str, Any], rows: list[Any], told: str, here: Path) -> None:
    """In one line, with nothing written."""
    Path("empty").mkdir()
    data = Path(options.pop("data", written("d.jsonl", rows)))
    before = sorted(here.rglob("*"))
    with pytest.raises(UserError, match=told) as error:
        init(options.pop("model", "model"), data, Path(options.pop("to", "mine.yaml")), **options)
    assert isinstance(error.value, ConfigError | DataError)
    assert "\n" not in str(error.value)
    assert sorted(here.rglob("*")) == before


def test_a_folder_of_csv_files(here: Path) -> None:
    Path("own").mkdir()
    for split, count in (("train", 4), ("test", 2)):
        lines = "".join(f"What is {n} + {count}?,{n + count}\n" for n in range(count))
        Path(f"own/{split}.csv").write_text(f"question,answer\n{lines}")
    init("model", Path("own"), Path("mine.yaml"))
    _, task = task_of("mine.yaml")
    assert (len(task.train), len(task.test)) == (4, 2)
    Path("own/test.csv").unlink()
    with pytest.raises(ConfigError, match=r"holds no test.jsonl \(nor .json, .parquet or .csv\)"):
        init("model", Path("own"), Path("other.yaml"))
    written("own/train.jsonl", GSM[:9]), written("own/test.jsonl", GSM[9:])  # what tasks read goes before
    init("model", Path("own"), Path("other.yaml"))
    assert [len(part) for part in (task_of("other.yaml")[1].train, task_of("other.yaml")[1].test)] == [9, len(GSM) - 9]


def test_programs_are_not_read_from_csv(here: Path) -> None:
    """The task reads its data itself, where the recipe says that they are."""
    Path("own").mkdir()
    for file in ("mbpp.csv", "own/train.csv", "own/test.csv"):
        Path(file).write_text("task_id,text,code,test_list\n1,Add.,x,[]\n2,Add.,x,[]\n")
    for data in ("mbpp.csv", "own"):
        with pytest.raises(ConfigError, match=rf"--data {data}: the task code reads JSON Lines, JSON or Parquet"):
            init("model", Path(data), Path("mine.yaml"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("question,answer\n1,2,3\n1,2\n", "d.csv:2: has another number of fields"),
        ("question,answer\n1\n1,2\n", "d.csv:2: has another number of fields"),
        ('question,answer\n"1,2\n', "not a CSV file that can be read"),
        ("question,answer\n", "holds no rows"),
        ("question,answer\n,2\n,3\n", "field 'question' is empty"),
        ("", "holds no rows"),
        ("question,question,answer\na,b,1\n", "two columns are called 'question'"),
        ("question;answer\n1 + 1?;2\n", "its fields are apart by ';'"),
        ("question\tanswer\n1 + 1?\t2\n", r"its fields are apart by '\\t'"),
    ],
)
def test_csv_that_is_none(text: str, told: str, here: Path) -> None:
    Path("d.csv").write_text(text)
    with pytest.raises(UserError, match=told):
        init("model", Path("d.csv"), Path("mine.yaml"))


@pytest.mark.parametrize("there", ["mine.yaml", "mine-data/train.jsonl", "mine_task.py"])
def test_init_writes_over_nothing(there: str, here: Path) -> None:
    Path(there).parent.mkdir(exist_ok=True)
    Path(there).write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        init("model", written("d.jsonl", WORDS), Path("mine.yaml"))
    assert Path(there).read_text() == "mine"


def test_check_explains(command: Command) -> None:
    """What it prints is the recipe still."""
    text = command("check", "demo", "--explain")
    assert "  # Updates of the stage.\n" in text
    assert yaml.load(text, Loader=Loader) == load_recipe("demo").model_dump(mode="json")
