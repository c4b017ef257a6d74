"""The settings of engines that sample beside the trainer."""

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from selfcorrect.config.base import LocalPath, Positive, Rate, Strict


class VllmConfig(Strict):
    """The engine of sampler: vllm (docs/vllm.md)."""

    server: str | None = None
    """Address of a server that runs (http://HOST:PORT); without one, the engine is in this process."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the engine computes in; auto is that of the policy's forward pass."""
    adapter: Literal["auto", "only", "merged"] = "auto"
    """What is sent after an update where an adapter trains: only it, or the weights it is merged into; auto is only."""
    memory_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of a GPU's memory that an engine in this process takes."""
    kv_cache_gib: Rate | None = None
    """Memory of the cache in place of that share; on a CPU 1 by default."""
    block_size: Positive | Literal["auto"] = "auto"
    """Tokens of a cache block, the unit in which attempt 2 finds attempt 1 in the cache; auto is 16, on a CPU 32."""
    max_model_len: Positive | Literal["auto"] = "auto"
    """Tokens of a rollout; auto is what the model reads, as far as the cache has room for it."""
    transfer: Literal["auto", "folder", "nccl", "ipc"] = "auto"
    """How whole weights reach a server: through a folder that both see, or by its NCCL or IPC transfer from a GPU."""
    sync_folder: LocalPath | None = None
    """Where versions of weights or adapters are written; a server must see it under the same path."""
    timeout: Rate = 1800.0
    """Seconds that a sync, or one request to a server, may take."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.server is not None:
            parts = urlsplit(self.server)
            _, _, port = parts.netloc.rpartition("]" if "]" in parts.netloc else "@")[2].partition(":")
            odd = parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment
            if odd or not (port == "" or (port.isascii() and port.isdigit() and int(port) < 65536)):
                raise ValueError(f"server = {self.server!r} is no address; write http://HOST:8000")
            fields = type(self).model_fields
            mine = [
                name
                for name in ("memory_share", "kv_cache_gib", "block_size", "max_model_len")
                if getattr(self, name) != fields[name].default
            ]
            if mine:
                raise ValueError(f"{mine[0]} is of an engine in this process; give it to the server as it is started")
        elif self.transfer != "auto":
            raise ValueError("transfer is for a server; in this process weights are handed over; leave it out")
        return self
