"""What a data file that cannot be read looks like: of another kind than its name says, or no data at all."""

import re
from pathlib import Path

_BEGINNING = 4096  # bytes
_MAGIC = {
    b"\x1f\x8b": "it is compressed by gzip, and is to be called {name}.gz",
    b"PAR1": "it is Parquet, and is to be called .parquet",
    b"PK\x03\x04": "it is a ZIP archive, or a spreadsheet; unpack it, or write it as JSON Lines",
    b"\xff\xfe": "it is UTF-16; write it as UTF-8",
    b"\xfe\xff": "it is UTF-16; write it as UTF-8",
    b"version https://git-lfs": "it is a Git LFS pointer; `git lfs pull` fetches the file",
}
_NO_HEADER = re.compile(r"""\{\s*"|\[\s*[\[{"]|<[^,\n]*$""", re.MULTILINE)  # `[q],answer` may name columns
_YAML = re.compile(r"---\s|- |[\w-]+:(\s|$)")


def looks(file: Path, kind: str) -> str:
    """In words that follow a complaint, with a semicolon before them; empty where it looks as its name says.

    kind: jsonl, json, parquet or csv.
    """
    name = file.name
    with file.open("rb") as stream:
        begins = stream.read(_BEGINNING)
    if name.lower().endswith(".gz") and begins.startswith(b"\x1f\x8b"):
        return ""
    if kind == "parquet" and begins.startswith(b"PAR1"):
        return "; it begins as Parquet does, so it is cut off or damaged: copy or download it again"
    told = next((told for magic, told in _MAGIC.items() if begins.startswith(magic)), "")
    if not told and b"\x00" in begins[:4]:
        told = _MAGIC[b"\xff\xfe"]
    return f"; {told.format(name=name)}" if told else _of_text(begins.decode("utf-8-sig", "replace").lstrip(), kind)


def _of_text(text: str, kind: str) -> str:
    line = text.partition("\n")[0].rstrip()
    if kind == "csv" and not _NO_HEADER.match(text):
        return ""
    if text.startswith("{"):
        return "" if kind in ("jsonl", "json") else "; it reads like JSON Lines, and is to be called .jsonl"
    if text.startswith("["):
        return "" if kind == "json" else "; it reads like a JSON array, and is to be called .json"
    if text.startswith("<"):
        return "; it reads like a web page, or XML; download the file itself"
    if not line.isprintable():
        return ""
    if _YAML.match(f"{line}\n"):
        return "; it reads like YAML; write an object of JSON a line"
    return "; it reads like CSV; write it as JSON Lines (`selfcorrect init` does, from a .csv)" if "," in line else ""
