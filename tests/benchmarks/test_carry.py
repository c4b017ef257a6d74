"""benchmarks/real/carry.py: what a bare machine needs is all there, and no more than a transfer takes. No network."""

import gzip
import json
import tomllib
import zipfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.benchmarks.conftest import ROOT, Script
from tests.support.data import GSM8K, HUMANEVAL, MBPP
from tests.support.graders import put_in_place
from tests.support.hf_model import save_qwen2


def wheels(folder: Path, packages: tuple[str, ...]) -> Path:
    """One file each; of bitsandbytes the libraries of three devices."""
    folder.mkdir()
    for package in packages:
        name = package.replace("-", "_")
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as out:
            out.writestr(f"{name}/__init__.py", "here = 1\n")
            for library in ("cuda118", "cuda130", "cpu") if name == "bitsandbytes" else ():
                out.writestr(f"{name}/lib{name}_{library}.so", "x" * 1000)
    return folder


def test_a_folder_to_carry(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    carry, to, data = script("benchmarks/real/carry.py"), tmp_path / "carry", tmp_path / "data"
    for name, rows in zip(carry.DATA, (MBPP, HUMANEVAL, GSM8K[:3], GSM8K[3:]), strict=True):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (data / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    tree = tmp_path / "tree"
    tree.write_bytes(b"x" * 1000)
    monkeypatch.setattr(carry, "tracked", lambda: [tree])
    model = save_qwen2(tmp_path / "model")
    call = ["--to", str(to), "--wheels", str(wheels(tmp_path / "wheels", carry.PACKAGES)), "--data", str(data)]
    carry.main([*call, "--model", str(model), "--limit", "0.3"])
    assert {path.name for path in (to / "site").iterdir()} == {name.replace("-", "_") for name in carry.PACKAGES}
    assert {path.stem.rpartition("_")[2] for path in to.rglob("*.so")} == {"cuda130", "cpu"}
    put_in_place(monkeypatch)
    run = script("benchmarks/real/run.py").main
    for task, folder in (("code", to / "data"), ("gsm8k", to / "data/gsm8k")):  # it finds them where they are put
        asked = ["--task", task, "--data", str(folder), "--output", str(tmp_path / task), "--minutes", "0", "--dry"]
        assert run(["--model", str(model), *asked]) == 0
    capsys.readouterr()
    carry.main([*call, "--model", str(model), "--limit", "0.3"])
    pieces = [path.stat().st_size for path in (to / "pieces").iterdir()]
    assert len(pieces) > 1
    assert max(pieces) + 1000 <= 0.3 * 2**20
    assert "working tree 0.0 MiB; site 0.0, data 0.0" in capsys.readouterr().out
    for more, said in [
        (["--limit", "0.002"], "together they are more than the 0.002 MiB of a transfer"),
        (["--cuda", "126"], "has no library for CUDA 126"),
        (["--data", str(tmp_path)], "holds no mbpp/mbpp.jsonl"),
        (["--wheels", str(wheels(tmp_path / "fewer", carry.PACKAGES[1:]))], "no wheel of annotated-types"),
    ]:
        with pytest.raises(SystemExit, match=said):
            carry.main([*call, *more])


def test_what_is_carried_and_what_is_there_need_nothing_else(script: Script) -> None:
    carry = script("benchmarks/real/carry.py")
    project: Any = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["qlora"], *extras["bench"]]
    for package in carry.PACKAGES:
        with suppress(metadata.PackageNotFoundError):  # trl and gguf are not installed everywhere
            asked += metadata.requires(package) or []
    needs = [need for need in map(Requirement, asked) if not need.marker or need.marker.evaluate({"extra": ""})]
    names = {need.name.lower().replace("_", "-") for need in needs}
    assert names - {*carry.PACKAGES, *carry.THERE} == set()
    assert set(carry.PACKAGES) <= carry.pinned().keys()
