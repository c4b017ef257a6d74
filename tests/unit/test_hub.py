"""Data sets by name through `datasets`, without a network: folders of the hub's layout stand in for repositories."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.config import CodeConfig, HubConfig, MathConfig
from selfcorrect.errors import DataError
from selfcorrect.hub import away
from selfcorrect.tasks import make_task
from selfcorrect.tasks.code import CodeTask
from selfcorrect.tasks.math import MathTask
from tests.support import graders
from tests.support.data import GSM8K, HUMANEVAL, MATH, MBPP

pyarrow = pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    graders.put_in_place(monkeypatch)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True, raising=False)


def repository(folder: Path, configs: Mapping[str, Mapping[str, Iterable[Mapping[str, Any]]]]) -> Path:
    """README.md with the configurations, CONFIG/SPLIT-00000-of-00001.parquet for each split."""
    import pyarrow.parquet

    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            file = folder / config / f"{split}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), str(file))
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", "# A data set"]))
    return folder


def test_math_of_the_hub_s_shape(tmp_path: Path) -> None:
    """Seven subjects, each a configuration; no ids, levels as text; the 500 in a repository of their own."""
    keep = ("problem", "solution")
    rows = [
        {**{k: row[k] for k in keep}, "level": "Level ?" if n == 1 else "Level 2", "type": "Algebra"}
        for n, row in enumerate(MATH)
    ]
    hub = repository(
        tmp_path / "hub",
        {"algebra": {"train": rows[:3], "test": rows[3:6]}, "geometry": {"train": rows[6:8], "test": rows[8:]}},
    )
    five = repository(tmp_path / "500", {"default": {"test": [{**MATH[n], "unique_id": f"test/{n}"} for n in (4, 9)]}})
    config = MathConfig(
        name="math", hub=HubConfig(path=str(hub), name=("algebra", "geometry")), hub_500=HubConfig(path=str(five))
    )
    task = make_task(config)
    assert isinstance(task, MathTask)
    assert [problem.reference["answer"] for problem in task.test] == ["8", "18"]
    assert [len(task.train), task.notes] == [10, ()]
    assert [dict(p.reference) for p in task.train][:2] == [
        {"answer": "0", "level": 2, "subject": "Algebra"}, {"answer": "2", "subject": "Algebra"},
    ]  # fmt: skip


def test_gsm8k_and_mbpp_and_humaneval(tmp_path: Path) -> None:
    main = repository(tmp_path / "gsm8k", {"main": {"train": GSM8K[:4], "test": GSM8K[4:]}})
    task: Any = make_task(MathConfig(name="math", dataset="gsm8k", hub=HubConfig(path=str(main), name="main")))
    assert [len(task.train), len(task.test)] == [4, 2]
    by_split = {"prompt": MBPP[:4], "test": MBPP[4:7], "validation": MBPP[7:8], "train": MBPP[8:]}
    mbpp = repository(tmp_path / "mbpp", {"full": by_split})
    humaneval = repository(tmp_path / "humaneval", {"openai_humaneval": {"test": HUMANEVAL}})
    task = make_task(
        CodeConfig(
            name="code", hub=HubConfig(path=str(mbpp), name="full"), evaluate_on="humaneval",
            evaluate_hub=HubConfig(path=str(humaneval)),
        )
    )  # fmt: skip
    assert isinstance(task, CodeTask)
    assert [len(task.train), len(task.test)] == [4, 4]
    # The same files, named as a folder, without `datasets`.
    task = make_task(CodeConfig(name="code", data=str(mbpp / "full")))
    assert [len(task.train), len(task.test)] == [4, 3]


def test_where_the_hub_is_away_the_cache_is_looked_at_and_nothing_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` itself would ask for the best part of a minute, for each of a set's parts."""
    import datasets

    own, asked, probes = datasets.load_dataset, list[bool](), list[str]()

    def load(*given: Any, **named: Any) -> Any:
        asked.append(not datasets.config.HF_HUB_OFFLINE)
        return own(*given, **named)

    def probed() -> str:
        probes.append(away())
        return probes[-1]

    gsm8k = {"train": [{"question": "q", "answer": "#### 3"}], "test": [{"question": "q", "answer": "#### 4"}]}
    here = repository(tmp_path / "gsm8k", {"main": gsm8k})
    make_task(MathConfig(name="math", dataset="gsm8k", hub=HubConfig(path=str(here), name="main"))).held_out(1)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "cache" / "gsm8k").rename(tmp_path / "cache" / "openai___gsm8k")
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("selfcorrect.tasks.sources.away", probed)
    kept = MathConfig(name="math", dataset="gsm8k", hub=HubConfig(path="openai/gsm8k", name=("main", "main")))
    assert make_task(kept).held_out(1)[0].prompt.count("q") == 1
    assert (asked, len(probes)) == ([False] * 4, 2)  # two parts of two splits
    other = MathConfig(name="math", dataset="gsm8k", hub=HubConfig(path="openai/other", name="main"))
    told = r"split train: cannot be loaded: it is not in the cache, and the hub \(http://127.0.0.1:9\) does not answer"
    with pytest.raises(DataError, match=told):
        make_task(other).held_out(1)
    assert not datasets.config.HF_HUB_OFFLINE


def test_what_cannot_be_loaded_is_told_in_one_line(tmp_path: Path) -> None:
    config = MathConfig(name="math", dataset="gsm8k", hub=HubConfig(path=str(tmp_path / "none"), name="main"))
    with pytest.raises(DataError, match=r"data set .*none \(main\), split train: cannot be loaded: .*set task.data"):
        make_task(config).held_out(1)
    gsm8k = repository(
        tmp_path / "gsm8k",
        {"main": {"train": [{"question": "q", "answer": 3}], "test": [{"question": "q", "answer": 4}]}},
    )
    task = make_task(MathConfig(name="math", dataset="gsm8k", hub=HubConfig(path=str(gsm8k), name="main")))
    with pytest.raises(DataError, match=r"gsm8k \(main\) test row 1: field 'answer' must be text, got 4"):
        task.draw(1, 1, 0)
