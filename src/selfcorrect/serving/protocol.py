"""Requests of OpenAI's chat interface -> `Ask`; everything that is not served is refused by name (no torch).

Beside the interface's own fields: `attempts`, and `correction_prompt` in place of the one the model was trained with.
"""

import difflib
import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

OWNER = "selfcorrect"  # of the models listed here
MOST_ATTEMPTS = 16
MOST_CHOICES = 8
Role = Literal["system", "user", "assistant"]


class ApiError(Exception):
    """An answer that is an error object of OpenAI's interface. status: of HTTP."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    return ApiError(400, message, param, code)


# Settings of the interface that are not served, with the values at which they ask for nothing.
_NOT_SERVED: dict[str, tuple[Any, ...]] = {
    "audio": (), "frequency_penalty": (0,), "function_call": ("none", "auto"), "logit_bias": ({},),
    "logprobs": (False,), "modalities": (["text"],), "parallel_tool_calls": (True, False), "prediction": (),
    "presence_penalty": (0,), "reasoning_effort": (), "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"), "store": (False,), "tool_choice": ("none", "auto"),
    "top_logprobs": (0,), "verbosity": ("medium",), "web_search_options": (), "top_k": (-1, 0), "min_p": (0,),
    "repetition_penalty": (1,), "echo": (False,),
}  # fmt: skip
# What a model may be offered and need not take: front ends offer tools with every request.
OFFERED = ("tools", "functions")
# What tells a provider who asks, and changes no answer.
_NO_MATTER = ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
# What clients send back of an answer that they were given, or keep with a message for themselves.
_OF_ANSWERS = (
    "name", "refusal", "audio", "function_call", "tool_calls", "annotations", "selfcorrect", "reasoning_content",
    "reasoning", "id", "metadata", "timestamp",
)  # fmt: skip
_LEAST_TOP_P = 1e-6  # in place of 0, which asks for the likeliest token


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Message(_Strict):
    """One turn; a content in parts is joined."""

    role: Role
    content: str


class StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Ask(_Strict):
    """A request as it is served. None: the server's own default."""

    model: str | None = None
    messages: Annotated[tuple[Message, ...], Field(min_length=1, strict=False)]
    attempts: Annotated[int, Field(ge=1, le=MOST_ATTEMPTS)] | None = None
    correction_prompt: Annotated[str, Field(min_length=1, max_length=20_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(max_length=4, strict=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("top_p", mode="after")
    @classmethod
    def _some(cls, value: float | None) -> float | None:
        return _LEAST_TOP_P if value == 0 else value

    @property
    def limit(self) -> int | None:
        """Tokens of an attempt at most."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def usage_wanted(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


@dataclass(frozen=True, slots=True)
class Plan:
    """An Ask with its defaults in place. model: as it is listed; correction: what asks for each further attempt."""

    ask: Ask
    model: str
    attempts: int
    correction: str

    @property
    def choices(self) -> int:
        return self.ask.n or 1


def read_json(body: bytes) -> dict[str, Any]:
    """A request's body. Raises ApiError where it is no JSON object."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON number")

    try:
        data = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise invalid(f"the body is not valid JSON: {why[:200]}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise invalid(f"the body must be a JSON object, not {type(data).__name__}", code="invalid_json")
    return data


def read_ask(data: dict[str, Any]) -> Ask:
    """A request's JSON object -> Ask. Raises ApiError, which names the field, its value, and why."""
    served = _served(data)
    messages = served.get("messages")
    if isinstance(messages, list):
        served["messages"] = [_message(message, f"messages[{place}]") for place, message in enumerate(messages)]
    try:
        ask = Ask.model_validate(served)
    except ValidationError as error:
        raise _told(error) from None
    last = f"messages[{len(ask.messages) - 1}]"
    if ask.messages[-1].role != "user":
        raise invalid(f"{last}.role = '{ask.messages[-1].role}': the last message must be the user's", f"{last}.role")
    if ask.stream_options is not None and not ask.stream:
        raise invalid("stream_options is for stream: true", "stream_options")
    if ask.max_tokens and ask.max_completion_tokens and ask.max_tokens != ask.max_completion_tokens:
        raise invalid("max_tokens and max_completion_tokens say different things; leave one out", "max_tokens")
    for text, where in _texts(ask):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise invalid(f"{where} holds half of a surrogate pair, which is no text", where)
    return ask


def _texts(ask: Ask) -> list[tuple[str, str]]:
    texts = [(message.content, f"messages[{place}].content") for place, message in enumerate(ask.messages)]
    texts += [(text, "stop") for text in ask.stop or ()]
    return [*texts, (ask.correction_prompt or "", "correction_prompt"), (ask.model or "", "model")]


def _served(data: dict[str, Any]) -> dict[str, Any]:
    """Without fields that ask for nothing. Raises ApiError for those that are not served, or unknown."""
    served: dict[str, Any] = {}
    for name, value in data.items():
        if name in Ask.model_fields:
            served[name] = value
        elif name in _NOT_SERVED:
            if value is not None and value not in _NOT_SERVED[name]:
                allowed = " or ".join(json.dumps(one) for one in _NOT_SERVED[name])
                way = f"only {allowed}; leave it out" if allowed else "leave it out"
                raise invalid(f"{name} = {_short(value)}: not supported here; {way}", name, "unsupported_parameter")
        elif name in OFFERED:
            if value is not None and not isinstance(value, list):
                raise invalid(f"{name} = {_short(value)}: must be a list", name)
        elif name not in _NO_MATTER:
            near = difflib.get_close_matches(name, [*Ask.model_fields, *_NOT_SERVED, *OFFERED], 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise invalid(f"unknown field {_short(name)}{meant}", name[:80], "unknown_parameter")
    return served


def _message(message: Any, where: str) -> Any:
    """One message, its parts joined; what it holds of earlier answers that has no bearing is left out."""
    if not isinstance(message, dict):
        return message
    known = Message.model_fields
    kept = {
        key: value
        for key, value in message.items()
        if key in known or not (key in _OF_ANSWERS or value in (None, [], {}))
    }
    for key in ("tool_calls", "function_call", "audio"):
        if message.get(key):
            raise invalid(f"{where}.{key}: tools and audio are not supported here", f"{where}.{key}")
    if kept.get("role") == "developer":
        kept["role"] = "system"
    if kept.get("role") in ("tool", "function"):
        raise invalid(f"{where}.role = '{kept['role']}': tools are not supported here", f"{where}.role")
    if kept.get("role") == "assistant" and message.get("content") is None:
        kept["content"] = ""  # as of an answer that was nothing but a call
    if isinstance(kept.get("content"), list):
        kept["content"] = "".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(kept["content"]))
    return kept


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        raise invalid(f"{where}.type = {_short(kind)}: only parts of type 'text' are supported here", f"{where}.type")
    if not isinstance(part.get("text"), str):
        raise invalid(f"{where}.text = {_short(part.get('text'))}: must be text", f"{where}.text")
    return str(part["text"])


def _told(error: ValidationError) -> ApiError:
    first = error.errors()[0]
    where = ""
    for part in first["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f"{'.' if where else ''}{str(part)[:80]}"
    if first["type"] == "missing":
        return invalid(f"{where} is missing", where, "missing_required_parameter")
    if first["type"] == "extra_forbidden":
        return invalid(f"{where}: unknown field", where, "unknown_parameter")
    why = re.sub("^(Input|Tuple|String) should", "must", first["msg"]).replace(" after validation", "")
    why = re.sub("a valid tuple$", "a list", re.sub("a valid dictionary or instance of .*", "an object", why))
    return invalid(f"{where} = {_short(first['input'])}: {why}", where)


def _short(value: Any) -> str:
    """A value as JSON in a message, cut off; huge numbers and deep lists too."""
    try:
        text = json.dumps(value, ensure_ascii=True, default=repr)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."
