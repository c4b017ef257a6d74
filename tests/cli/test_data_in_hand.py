"""Data as users have it: in a recipe's place, under a name of another kind, in the folders that data sets come in."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from selfcorrect.errors import DataError, UserError
from selfcorrect.starting.columns import look
from selfcorrect.starting.init import init
from selfcorrect.tasks.files import read_rows
from tests.cli.test_starting import GSM, MBPP, here, task_of, written
from tests.conftest import Called
from tests.support.data import HUMANEVAL

__all__ = ["here"]


@pytest.mark.parametrize(
    "name", ["d.jsonl", "d.ndjson", "d.parquet", "d.csv", "d.json", "d.jsonl.gz", "own", "own two"]
)
@pytest.mark.parametrize("verb", ["train", "check"])
def test_data_in_the_recipe_s_place(name: str, verb: str, here: Path, called: Called) -> None:
    written(name if "." in name else f"{name}/train.jsonl", GSM)
    quoted = f"'{name}'" if " " in name else name
    told = f"is data, not a recipe; `selfcorrect init --model MODEL --data {quoted}` writes a recipe for it"
    assert called(verb, name) == (2, "", f"error: recipe {name}: {told}\n")


LINES, ARRAY = '{"question": "1?", "answer": "1"}\n' * 3, json.dumps([{"question": "1?", "answer": "1"}])
CSV, YAML = 'question,answer\n"1, 2?",1\n', "- question: 1?\n  answer: 1\n"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("d.jsonl", CSV.encode(), "it reads like CSV; write it as JSON Lines (`selfcorrect init` does, from a .csv)"),
        ("d.jsonl", f'"question","answer"\n"{"x" * 9}","1"\n'.encode(), "it reads like CSV"),
        ("d.json", CSV.encode(), "it reads like CSV"),
        ("d.jsonl", ARRAY.encode(), "it reads like a JSON array, and is to be called .json"),
        ("d.jsonl", json.dumps(json.loads(ARRAY), indent=1).encode(), "it reads like a JSON array"),
        ("d.jsonl", b"PAR1\x15\x04\x15\xff", "it is Parquet, and is to be called .parquet"),
        ("d.jsonl", b"\x1f\x8b\x08\x00\x00", "it is compressed by gzip, and is to be called d.jsonl.gz"),
        ("d.json", b"\x1f\x8b\x08\x00\x00", "it is compressed by gzip, and is to be called d.json.gz"),
        ("d.jsonl", YAML.encode(), "it reads like YAML; write an object of JSON a line"),
        ("d.jsonl", b"question: 1?\nanswer: 1, 2\n", "it reads like YAML"),
        ("d.jsonl", LINES.encode("utf-16"), "it is UTF-16; write it as UTF-8"),
        ("d.jsonl", LINES.encode("utf-16-le"), "it is UTF-16; write it as UTF-8"),
        ("d.jsonl", b"<!DOCTYPE html>\n<html>", "it reads like a web page, or XML; download the file itself"),
        ("d.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer"),
        ("d.jsonl", b"PK\x03\x04\x14\x00", "it is a ZIP archive, or a spreadsheet"),
        ("d.parquet", LINES.encode(), "it reads like JSON Lines, and is to be called .jsonl"),
        ("d.parquet", CSV.encode(), "it reads like CSV"),
        ("d.parquet", b"PAR1\x15\x04\x15\xff", "it begins as Parquet does, so it is cut off or damaged: copy or"),
    ],
)
def test_a_file_that_goes_by_another_kind_s_name(name: str, content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        read_rows(tmp_path / name)
    assert f"; {told}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (LINES.encode(), "it reads like JSON Lines, and is to be called .jsonl"),
        (ARRAY.encode(), "it reads like a JSON array, and is to be called .json"),
        (b"PAR1\x15\x04\x15\xff", "it is Parquet"),
        (b"\x1f\x8b\x08\x00", "it is compressed by gzip"),
        (CSV.encode("utf-16"), "it is UTF-16"),
        (json.dumps(json.loads(ARRAY), indent=1).encode(), "it reads like a JSON array"),
        (b"<!DOCTYPE html>\n<html>", "it reads like a web page"),
    ],
)
def test_what_goes_by_the_name_of_csv(content: bytes, told: str, here: Path) -> None:
    (here / "d.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"^d\.csv: not a CSV file[^\n]*; {told}[^\n]*$"):
        init("model", Path("d.csv"), Path("mine.yaml"))


@pytest.mark.parametrize(
    ("rows_each", "held"),
    [
        ([1] * 9 + [500] + [1] * 5, 1),  # the tenth has nearly all rows
        ([1] * 8 + [300, 300], 1),
        ([1] * 20, 2),
        ([3, 5], 3),
        ([4, 4], 4),
        ([9, 2, 2], 2),
    ],
)
def test_no_question_with_most_rows_is_held_out(rows_each: list[int], held: int, here: Path) -> None:
    rows = [
        {"question": f"{at} + 1?", "answer": str(at + 1)} for at, count in enumerate(rows_each) for _ in range(count)
    ]
    (here / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = look(Path("d.jsonl"), None, None, None)
    assert (len(found.train), len(found.test)) == (len(rows) - held, held)
    told = init("model", Path("d.jsonl"), Path("mine.yaml"))
    assert any("more than a quarter" in line for line in told) == (4 * held > len(rows))


@pytest.mark.parametrize("header", ["[q],answer", "{q},answer", "<q>,answer", "[1],answer", '"[q, r]",answer'])
def test_names_of_columns_in_brackets_are_csv(header: str, here: Path) -> None:
    (here / "d.csv").write_text(f"{header}\n" + "".join(f"{n} + 1?,{n + 1}\n" for n in range(9)))
    asked = next(csv.reader([header]))[0]
    assert len(look(Path("d.csv"), asked, None, None).train) == 8


@pytest.mark.parametrize(
    "content", [b'{"x": 1}\n{"x": 1,}\n', b'{"x": "\xff"}\n', b"\n", b'\xef\xbb\xbf{"a": 1, "b: 2}\n', b"3\n", b'"a"\n']
)
def test_a_file_of_its_own_kind_is_not_suspected(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(content)
    with pytest.raises(DataError) as error:
        read_rows(tmp_path / "d.jsonl")
    assert not any(word in str(error.value) for word in ("it is ", "it reads", "at at"))


def test_folders_as_data_sets_come_in(here: Path) -> None:
    """MBPP's and HumanEval's are read by the task as they are; of others a file is to be named."""
    written("mbpp/mbpp.jsonl", MBPP), written("mbpp/sanitized-mbpp.json", MBPP)
    written("he/HumanEval.jsonl", HUMANEVAL), written("other/a.jsonl", GSM), written("other/b.json", GSM)
    init("model", Path("mbpp"), Path("mbpp.yaml"))
    assert yaml.safe_load(Path("mbpp.yaml").read_text())["task"]["data"] == "./mbpp"
    assert len(task_of("mbpp.yaml")[1].train) == 1
    init("model", Path("he"), Path("he.yaml"))
    assert yaml.safe_load(Path("he.yaml").read_text())["task"]["evaluate_on"] == "humaneval"
    assert len(task_of("he.yaml")[1].test) == 4
    with pytest.raises(
        UserError, match=r"holds no train\.jsonl \(.*\); name one of a\.jsonl, b\.json to have it divid"
    ):
        init("model", Path("other"), Path("other.yaml"))
