"""Rows from files: every kind, and every way in which a file can be wrong, with file, line, field and reason."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcorrect.errors import DataError
from selfcorrect.tasks import files
from selfcorrect.tasks.files import Row, find_files, read_rows, unique

ROWS = [{"id": 1, "text": "a\u2028b"}, {"id": 2, "text": "c\r\nd"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def parquet(file: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), str(file))


KINDS: dict[str, Callable[[Path], object]] = {
    "rows.jsonl": lambda file: file.write_text(LINES, encoding="utf-8"),
    "rows.ndjson": lambda file: file.write_text("\n" + LINES.replace("\n", "\r\n") + "\n", encoding="utf-8"),
    "bom.jsonl": lambda file: file.write_bytes(b"\xef\xbb\xbf" + LINES.encode()),
    "rows.json": lambda file: file.write_text(json.dumps(ROWS, indent=1)),
    "rows.jsonl.gz": lambda file: file.write_bytes(gzip.compress(LINES.encode())),
    "ROWS.JSON.GZ": lambda file: file.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "train-00000-of-00001.parquet": parquet,
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    KINDS[name](tmp_path / name)
    rows = read_rows(tmp_path / name)
    assert [dict(row.fields) for row in rows] == ROWS
    assert all(row.where.startswith(str(tmp_path / name)) for row in rows)


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n\n{"x": 1}\n\n{"x": 2}', encoding="utf-8")
    assert [row.where.rpartition(":")[2] for row in read_rows(tmp_path / "a.jsonl")] == ["3", "5"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"x": 1}\n{"x": 1,,}\n', r"a.jsonl:2: not valid JSON: .* at column 9"),
        ("a.jsonl", b'{"x": 1}\n[1]\n', r"a.jsonl:2: expected a JSON object, got list"),
        ("a.jsonl", b'{"x": 1}\n{"x": "\xff"}\n', r"a.jsonl:2: not UTF-8 text: invalid start byte at byte 8 of the line; write"),
        ("a.jsonl", b'\xff\xfe{\x00}\x00', r"a.jsonl:1: holds a NUL byte; the file is damaged, or not UTF-8"),
        ("a.jsonl", b'{"x": 1}\n{"x": "\x00"}\n', r"a.jsonl:2: holds a NUL byte"),
        ("a.jsonl", b'{"x": ' + b"9" * 5000 + b"}", r"a.jsonl:1: not valid JSON: Exceeds the limit"),
        ("a.jsonl", b"[" * 100_000, r"a.jsonl:1: not valid JSON"),
        ("a.jsonl", b'{"x": 1}\n{"x": "cut', r"a.jsonl:2: not valid JSON: Unterminated string"),
        ("a.jsonl", b"", r"a.jsonl: holds no rows"),
        ("a.jsonl", b"\n \n", r"a.jsonl: holds no rows"),
        ("a.json", b"", r"a.json: holds no rows"),
        ("a.json", b"[]", r"a.json: holds no rows"),
        ("a.json", b'{"x": 1}', r"a.json: expected a JSON array of objects, got \{'x': 1\}; one object a line is .jsonl"),
        ("a.json", b'[{"x": 1}, 2]', r"a.json: entry 2: expected a JSON object, got int"),
        ("a.json", b'{"x": 1}\n{"x": 2}\n', r"a.json: not valid JSON: Extra data at line 2; .* is to be called .jsonl"),
        ("a.json", b'[{"x": 1},\n ]', r"a.json: not valid JSON: .* at line"),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-12], r"a.jsonl.gz: the gzip file is cut off"),
        ("a.jsonl.gz", LINES.encode(), r"a.jsonl.gz: not a gzip file, whatever its name says"),
        ("a.jsonl.gz", gzip.compress(b"x" * 999, mtime=0)[:10] + b"\x07garbage", r"a.jsonl.gz: the gzip file is"),
        ("a.parquet", b"PAR1 no", r"a.parquet: not a Parquet file that can be read"),
        ("a.csv", b"x\n1\n", r"a.csv: not a data file by its name; expected .jsonl, .json or .parquet"),
        ("a.jsonl", None, r"a.jsonl: cannot be read: No such file"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_told_in_one_line(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_rows(tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_a_line_of_50_mb_is_neither_kept_nor_parsed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"x": 1}\n{"x": "' + b"y" * (50 << 20) + b'"}\n')
    with pytest.raises(DataError, match=r"a.jsonl:2: the line is longer than 16 MB"):
        read_rows(tmp_path / "a.jsonl")


def test_a_large_array_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_JSON", 1 << 20)
    (tmp_path / "a.json").write_bytes(b'["' + b"y" * (2 << 20) + b'"]')
    with pytest.raises(DataError, match=r"a.json: larger than 1 MB; write it as JSON Lines"):
        read_rows(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("fields", "read", "message"),
    [
        ({"b": 1}, lambda row: row.text("a"), "f:7: field 'a' is missing; the row has b"),
        ({"a": 3}, lambda row: row.text("a"), "f:7: field 'a' must be text, got 3"),
        ({"a": None}, lambda row: row.text("a"), "f:7: field 'a' must be text, got None"),
        ({"a": " \n"}, lambda row: row.text("a"), "f:7: field 'a' is empty"),
        ({"a": "x\x00"}, lambda row: row.text("a"), "f:7: field 'a' holds a NUL character"),
        ({"a": "\ud800"}, lambda row: row.text("a"), "f:7: field 'a' holds half a surrogate pair"),
        ({"a": "x"}, lambda row: row.texts("a"), "f:7: field 'a' must be a list of texts, got 'x'"),
        ({"a": ["x", 1]}, lambda row: row.texts("a"), "f:7: field 'a' must be a list of texts"),
        ({"a": True}, lambda row: row.integer("a"), "f:7: field 'a' must be a whole number, got True"),
        ({"a": 1.0}, lambda row: row.integer("a"), "f:7: field 'a' must be a whole number, got 1.0"),
        ({"a": "HumanEval/x"}, lambda row: row.integer("a"), "f:7: field 'a' must be a whole number"),
        ({"a": "x" * 999}, lambda row: row.integer("a"), "f:7: field 'a' must be a whole number, got 'xxx"),
    ],
)  # fmt: skip
def test_fields_are_checked(fields: dict[str, object], read: Callable[[Row], object], message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(Row("f:7", fields))
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 200


def test_numbers_are_read_from_ids() -> None:
    assert [Row("", {"a": value}).integer("a") for value in (12, "12", "HumanEval/12", "Mbpp/12")] == [12] * 4


def test_the_same_id_twice_names_both_places() -> None:
    rows = [Row(f"f:{line}", {"id": line % 3}) for line in (1, 2, 3, 4)]
    with pytest.raises(DataError, match=r"f:4: field 'id' = 1 stands at f:1 already"):
        unique(rows, lambda row: row.fields["id"], "id")


def test_an_id_that_is_a_list_is_refused() -> None:
    with pytest.raises(DataError, match=r"b:2: field 'id' must be text or a number, got \[1\]"):
        unique([Row("b:1", {"id": "a"}), Row("b:2", {"id": [1]})], lambda row: row.fields["id"], "id")


def test_a_folder_s_files_are_found_by_their_stems(tmp_path: Path) -> None:
    for name in ("train-00001-of-00002.parquet", "train-00000-of-00002.parquet", "train12k.ids.txt", "test.jsonl.gz"):
        (tmp_path / name).touch()
    assert [file.name[:11] for file in find_files(tmp_path, ["train"])] == ["train-00000", "train-00001"]
    assert [file.name for file in find_files(tmp_path, ["absent", "TEST"])] == ["test.jsonl.gz"]
    assert find_files(tmp_path, ["validation"]) == []
    (tmp_path / "test.json").touch()
    with pytest.raises(DataError, match=r"holds test.json and test.jsonl.gz; keep one"):
        find_files(tmp_path, ["test"])


@given(st.sampled_from(["a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"]), st.binary(max_size=60), st.integers(0, 90))
def test_no_bytes_end_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, name: str, noise: bytes, place: int
) -> None:
    """Noise alone, and noise in the middle of a good file."""
    good = LINES.encode() if "jsonl" in name else json.dumps(ROWS).encode()
    good = gzip.compress(good, mtime=0) if name.endswith("gz") else good
    file = tmp_path_factory.getbasetemp() / name
    for content in (noise, good[:place] + noise + good[place + len(noise) :]):
        file.write_bytes(content)
        told = ""
        try:
            rows = read_rows(file)
        except DataError as error:
            rows, told = [], str(error)
        assert all(isinstance(row.fields, dict) for row in rows)
        assert rows or told.startswith(str(file))
        assert "\n" not in told
