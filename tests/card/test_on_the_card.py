"""A run on the card, beside the same run on the processor. tests/support/card says what stands for the card."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selfcorrect.models.language_model import LanguageModel
from selfcorrect.samplers.graphs import FIXED, record
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.tasks.countdown import Countdown
from selfcorrect.types import SamplingParams
from tests.run.conftest import ENDS
from tests.support.card.tensors import waits
from tests.support.runs import go, lucky_grade, read_rows, recipe
from tests.support.tiny import tiny_lm

pytestmark = pytest.mark.card


def test_what_a_card_refuses() -> None:
    """Without these, nothing below would say much."""
    there, here, one = torch.ones(3, device="cuda"), torch.ones(3), torch.tensor(1)
    assert (there + here[0]).device.type == "cuda"  # a single number may come from anywhere
    assert there[torch.tensor([0, 1])].tolist() == [1, 1]  # and so may indices
    refuse: list[Any] = [
        lambda: there + here, lambda: here[there.long()], lambda: torch.cat([there, here]),
        lambda: there.index_select(0, one), lambda: torch.stack([there[0], here[0]]),
        lambda: there.index_put_((torch.tensor([0]),), here[:1]),
    ]  # fmt: skip
    for refused in refuse:
        with pytest.raises(RuntimeError, match="to be on the same device"):
            refused()
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator"):
        torch.rand(2, device="cuda", generator=torch.Generator("cpu"))
    wait: list[Any] = [
        there.sum().item, there.cpu, lambda: there[there > 0], lambda: here.to("cuda"),
        lambda: there[torch.tensor([0, 1])], there.long().bincount,
    ]  # fmt: skip
    for waiting in wait:
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"), recorded():
            waiting()
    with pytest.raises(TypeError, match="can't convert cuda"):
        there.numpy()


def recorded() -> Any:
    return torch.cuda.graph(torch.cuda.CUDAGraph())


def test_a_graph_runs_when_it_is_played() -> None:
    counted, made = torch.zeros(2, device="cuda"), list[Tensor]()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        counted.add_(1)
        made.append(counted * 10)
    assert counted.tolist() == [0, 0]
    assert made[0].isnan().all()
    for times in (1, 2):
        graph.replay()
        assert (counted.tolist(), made[0].tolist()) == ([times] * 2, [10 * times] * 2)


def test_a_grader_in_another_thread_may_use_the_card_meanwhile() -> None:
    """A user's own may have a model there. By torch's default neither it nor the graph would go on."""
    there, found = torch.ones(2, device="cuda"), list[Any]()

    def doubled() -> Any:
        return (2 * there).tolist()

    def grades() -> None:
        with ThreadPoolExecutor(1) as pool:
            found.append(pool.submit(doubled).result())

    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"), recorded():
        grades()

    def step() -> None:
        grades()
        there.add_(1)

    record(step, torch.cuda.graph_pool_handle())()
    assert (found, there.tolist()) == ([[2, 2]], [2, 2])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_lm("llama", "sdpa", ENDS).save(folder, torch.float32)
    return folder


def ran(output: Path, model: Path, device: str, **changed: Any) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The numbers of each step, and the weights at the end."""
    from safetensors.torch import load_file

    settings = recipe(output / device, model)
    settings["model"] |= {"device": device, "attention": "sdpa"}
    settings["optimizer"] |= {
        "epsilon": 1e-4,
        "padding_free": "auto",
    }  # where Adam divides by it, no rounding is amplified
    run = go({**settings, **changed})
    return read_rows(run / "metrics.jsonl"), load_file(run / "final" / "model.safetensors")


def test_the_same_steps_as_on_the_processor(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both stages in float32: static shapes, graphs, the reference and its KL, masks and gathers."""
    monkeypatch.setattr(Countdown, "grade", lucky_grade)
    steps = [{"name": name, "objective": name, "steps": 1, "learning_rate": 0.003} for name in ("stage1", "stage2")]
    few = {"stages": steps, "evaluation": {"problems": 1, "controls": False}, "checkpoint": {"every": 9}}
    (here, mine), (there, theirs) = (ran(tmp_path, model, device, **few) for device in ("cpu", "cuda"))
    for one, other in zip(here, there, strict=True):
        assert (one["rewards"], one["sampled_tokens"]) == (other["rewards"], other["sampled_tokens"])
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert one["kl"] == pytest.approx(other["kl"], rel=1e-3, abs=1e-6)
    assert all(row["grad_norm"] > 0 for row in there)
    for name, weight in mine.items():
        torch.testing.assert_close(theirs[name], weight, rtol=1e-4, atol=1e-5)


def test_how_often_the_host_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once in so many tokens, however many rows; and what is recorded plays what the processor samples."""
    lm: LanguageModel = tiny_lm("llama", "sdpa")
    prompts = [(5, 6, 7 + row % 3) for row in range(5)]
    asked = [SamplingParams(1.0, tokens, 3) for tokens in (17, 33)]
    alone = [TransformersSampler(lm, shapes=FIXED).sample(prompts, params) for params in asked]
    lm.model.to("cuda")
    lm.device = torch.device("cuda", 0)
    sampler, waited = TransformersSampler(lm), list[int]()
    for params, expected in zip(asked, alone, strict=True):
        waits.clear()
        found = sampler.sample(prompts, params)
        waited.append(sum(waits.values()))
        assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert sampler._graphs
    assert sampler._graphs._recorded
    assert [max(len(one.token_ids) for one in done) for done in alone] == [17, 33]
    # A wait a token would be 16; rows whose guesses are right end before others.
    assert waited[1] - waited[0] < 16 / 2, waited
