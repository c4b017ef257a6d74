"""The hub, as far as models are sent there: a client that takes what the real one's methods take, and sends nothing."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest


def stand_in_hub(patch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Puts it in place; returns the calls to come, by name and arguments."""
    import huggingface_hub

    calls, real = list[tuple[str, dict[str, Any]]](), huggingface_hub.HfApi

    class Client:
        def __getattr__(self, name: str) -> Callable[..., None]:
            def call(*args: Any, **kwargs: Any) -> None:
                bound = inspect.signature(getattr(real, name)).bind(self, *args, **kwargs)
                calls.append((name, dict(bound.arguments)))

            return call

    patch.setattr(huggingface_hub, "HfApi", Client)
    return calls
