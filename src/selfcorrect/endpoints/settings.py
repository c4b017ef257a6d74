"""How an endpoint is asked: what a user sets, checked before anything is sent; and the key, which is shown nowhere."""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from selfcorrect.endpoints.secret import Secret
from selfcorrect.errors import ConfigError

KEY = "OPENAI_API_KEY"
_PATH = "/chat/completions"
_OURS = ("model", "messages", "n", "stream")
LIMITS = ("max_completion_tokens", "max_tokens")  # the fields of a request that hold its limit


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible chat endpoint. Raises ConfigError where a value cannot be used.

    url: its base, as the OpenAI client takes it (most end in /v1). key_env: the environment variable that holds the
    key; where it is not set, none is sent. concurrency: requests under way at once. timeout: seconds a request may
    take in all. retries: of a request that had no answer. max_tokens_total: tokens read and written, in all.
    max_cost: in the unit of the prices, which are per million tokens. body: fields for every request, over our own;
    null takes one of ours away. send_reasoning: whether what a model reasoned apart from its answer is sent back with
    it. tokenizer: a folder or a tokenizer.json to count with. first_wait: seconds before the first retry, doubled at
    every other one.
    """

    url: str
    key_env: str | None = None
    concurrency: int = 8
    timeout: float = 600.0
    retries: int = 8
    max_tokens_total: int | None = None
    max_cost: float | None = None
    price_in: float | None = None
    price_out: float | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    send_reasoning: bool = False
    tokenizer: str | None = None
    first_wait: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _checked_url(self.url))
        for name, least in (("concurrency", 1), ("retries", 0), ("max_tokens_total", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{_option(name)} {value}: must be {least} or more")
        for name in ("timeout", "max_cost", "price_in", "price_out", "first_wait"):
            value = getattr(self, name)
            positive = value is None or value > 0 or (value == 0 and name.startswith("price"))
            if not (positive and (value is None or math.isfinite(value))):
                raise ConfigError(f"{_option(name)} {value}: must be a positive number")
        if self.max_cost is not None and (self.price_in is None or self.price_out is None):
            raise ConfigError(
                "--max-cost: needs --price-in and --price-out, the prices of a million tokens read and written"
            )
        for name in LIMITS:
            value = self.body.get(name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ConfigError(f"--body: {name} {json.dumps(value)}: must be a whole number from 1 on, or null")
        if not _is_json(self.body):
            raise ConfigError("--body: holds what cannot be sent: numbers must be finite, and characters whole")
        limited = self.body.get(LIMITS[0]) or self.body.get(LIMITS[1], True)
        if not limited and (self.max_tokens_total or self.max_cost):
            raise ConfigError(
                f"--body: takes the limit of an answer away, so no budget could be kept; set {LIMITS[0]} in it"
            )
        if taken := [name for name in self.body if name in _OURS]:
            raise ConfigError(f"--body: {taken[0]} is set by the evaluation itself; leave it out")
        if self.key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", self.key_env):
            raise ConfigError("--key-env: must be the name of an environment variable, not the key itself")

    def secret(self) -> Secret:
        """The key. Raises ConfigError where the variable that was named is not set, or holds no key."""
        name = self.key_env or KEY
        value = os.environ.get(name, "").strip()
        if not value and self.key_env is not None:
            raise ConfigError(f"--key-env {name}: that environment variable is not set; export it, or leave it out")
        if not (value.isascii() and value.isprintable()) or " " in value:
            raise ConfigError(f"{name}: the key in it has characters that no header may hold; set it anew")
        return Secret(value)


def read_body(text: str) -> dict[str, Any]:
    """The option --body. Raises ConfigError where it is no JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--body: no JSON ({error}); it is an object, such as '{{\"top_k\": -1}}'") from None
    if not isinstance(found, dict):
        raise ConfigError("--body: must be a JSON object, such as '{\"top_k\": -1}'")
    return found


def _is_json(value: Any) -> bool:
    try:
        json.dumps(dict(value), allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError):
        return False
    return True


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _checked_url(text: str) -> str:
    try:
        parts = urlsplit(text.strip())
        bad = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:
        bad = True
    if bad:
        raise ConfigError("--endpoint: must be a URL such as http://localhost:8000/v1, with http:// or https://")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ConfigError(
            "--endpoint: must be a plain URL, without user, query or fragment; the key belongs into the environment "
            f"({KEY}, or the variable that --key-env names)"
        )
    return parts.geturl().rstrip("/").removesuffix(_PATH)
