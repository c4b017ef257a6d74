"""What a transfer of weights to a server asks of the real vLLM: its trainer side, with nothing sent. `make test-vllm`."""

import inspect
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from selfcorrect.models.plain import PlainWeights
from selfcorrect.samplers.vllm_server import AnsweredError, Server
from tests.support.server import serving
from tests.support.tiny import tiny_lm

WHY = "vLLM is not installed: `make test-vllm` runs this in an environment of its own"
pytestmark = [pytest.mark.vllm, pytest.mark.skipif(find_spec("vllm") is None, reason=WHY)]


@pytest.mark.parametrize("kind", ["ipc", "nccl"])
def test_the_trainer_side_takes_what_it_is_given(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names and arguments are vLLM's; the source says of each weight what it then gives. Sending needs a card."""
    from vllm.distributed.weight_transfer import factory

    begun: list[dict[str, Any]] = []
    sent: list[list[Any]] = []
    takes = inspect.signature(factory.WeightTransferTrainerFactory.trainer_init)

    def begins(*args: Any, **kwargs: Any) -> Any:
        begun.append(dict(takes.bind(*args, **kwargs).arguments))
        trainer = SimpleNamespace(source=kwargs["source"])
        trainer.send_weights = lambda: sent.append([trainer.source.metadata(), list(trainer.source)])
        return trainer

    monkeypatch.setattr(factory.WeightTransferTrainerFactory, "trainer_init", begins)
    server: Any = object.__new__(Server)
    server._url, server._timeout, server._device, server._transfer = (
        "http://127.0.0.1:1",
        5.0,
        torch.device("cpu"),
        kind,
    )
    server._trainer = None
    server._get = lambda path: {"world_size": 2}
    monkeypatch.setattr("selfcorrect.samplers.vllm_server._own_address", lambda url: ("127.0.0.1", 4321))
    weights = PlainWeights(tiny_lm("llama"), torch.float32, merged=True)
    for _ in range(2):
        server._by_transfer(weights)
    assert len(begun) == 1  # they meet once
    info = next(value for value in begun[0].values() if type(value).__name__.endswith("TrainerInitInfo"))
    assert info.rank == 0
    assert kind == "ipc" or (info.master_port, info.world_size) == (4321, 3)
    for metadata, given in sent:
        assert [about.name for about in metadata] == [name for name, _ in weights] == [name for name, _ in given]
        assert all(
            (about.dtype, tuple(about.shape)) == (t.dtype, tuple(t.shape))
            for about, (_, t) in zip(metadata, given, strict=True)
        )
    assert len(sent) == 2
    with serving(tiny_lm("llama")) as fake:
        server._url, server._trainer = f"http://127.0.0.1:{fake.server_port}", None
        server._by_transfer(weights)
        client = begun[1]["client"]
        client.finish_weight_update()
        fake.answers["/update_weights"] = (500, "CUDA error: out of memory")
        with pytest.raises(AnsweredError, match="CUDA error: out of memory"):
            client.update_weights({"names": []})
        assert fake.asked == ["/finish_weight_update", "/update_weights"]
        assert server.said() == "CUDA error: out of memory"
