"""From a response to an answer, or why there is none: whatever a server makes of the format, an outcome or a word."""

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from selfcorrect.models.messages import plain_text
from selfcorrect.types import CUT_OFF, Grade, Outcome

_SHOWN = 200  # characters of a server's words in a message
_LONGEST = 64  # characters a token, at most, of an answer that is kept whole
_TOO_LONG = re.compile(
    r"context.{0,3}(?:length|window|size)|maximum (?:sequence|input|prompt)|max_model_len"
    r"|too (?:long|large|many tokens)|exceeds? .{0,40}(?:context|tokens)|larger than the (?:model|maximum)",
    re.IGNORECASE,
)
_STOPPED = {  # finish reasons as servers name them beside OpenAI's own
    "content_filter",
    "safety",
    "recitation",
    "blocklist",
    "prohibited_content",
    "spii",
    "sensitive",
    "moderation",
}
_AGAIN = {408, 409, 421, 425, 429}
_STOPS = {
    401: "the key is refused; set another in the environment (--key-env names the variable)",
    402: "it wants to be paid",
    404: "",
}
_BROKEN = {"abort", "aborted", "cancel", "cancelled", "canceled", "error", "failed", "timeout", "network_error"}
_MARKUP = re.compile(r"<(script|style)\b(?:(?!<\1\b).)*?</\1>|<[^<>]*>", re.DOTALL | re.IGNORECASE)  # linear
_FILTERED = re.compile(  # an error that says that a filter keeps the question from the model
    r"content.?(?:filter|policy|management)|moderation|safety|flagged|usage polic", re.IGNORECASE
)


@dataclass(eq=False)
class Failed(Exception):  # noqa: N818 - an outcome like others
    """No answer. stop: no request will have one. again: another try may. Else it may be this conversation alone.

    wait: seconds the server asks for. served: whether it may have worked for it, and may charge. verdict: where the
    failure is the model's, and its outcome.
    """

    why: str
    stop: bool = False
    again: bool = False
    wait: float | None = None
    served: bool = False
    verdict: Grade | None = None
    busy: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What an endpoint answered. verdict: where it says itself that there is nothing to grade; None where there is.

    about: what else it told: finish reason, usage, model, id. odd: what a user should know, once.
    """

    text: str
    reasoning: str = ""
    cut: bool = False
    verdict: Grade | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    odd: tuple[str, ...] = ()


def _malformed(why: str) -> Failed:
    return Failed(one_line(why), again=True, served=True)


def no_answer(detail: str) -> Grade:
    return Grade(Outcome.NO_ANSWER, 0.0, "", detail)


def truncated(detail: str) -> Grade:
    return Grade(Outcome.TRUNCATED, 0.0, "", detail)


def too_long(text: str) -> bool:
    """Whether an error says that the conversation does not fit the model's context."""
    return _TOO_LONG.search(text) is not None


def one_line(text: str, limit: int = _SHOWN) -> str:
    """A server's words as part of a message: printable, on one line, not long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 8 * limit]).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def error_text(body: bytes) -> str:
    """The message of an error's body, of whatever shape."""
    text = body.decode("utf-8", "replace")
    try:
        told = _message(json.loads(text))
    except (ValueError, RecursionError):
        told = _MARKUP.sub(" ", text)
    return one_line(told) or "no more is said"


def _message(found: Any) -> str:
    if isinstance(found, dict):
        for name in ("error", "message", "detail", "msg", "reason"):
            if name in found and (told := _message(found[name])):
                code = found.get("code") or found.get("type")
                return f"{told} ({code})" if isinstance(code, str) and code and code not in told else told
    if isinstance(found, list) and found:
        return _message(found[0])
    if isinstance(found, str):
        return plain_text(found)
    return "" if found is None or isinstance(found, dict | list) else str(found)


def by_status(status: int, told: str, headers: Mapping[str, str]) -> Failed:
    """What a status that is no success means. told: the server's words."""
    why = f"HTTP {status}: {told.removesuffix('.')}"
    if 300 <= status < 400:
        return Failed(
            f"HTTP {status}: a redirect to {one_line(headers.get('location', '?'), 120)}; name that", stop=True
        )
    if status in (400, 413, 422) and (status == 413 or too_long(told)):
        return Failed(why, verdict=truncated(f"does not fit the endpoint: {one_line(told, 120)}"))
    if status in (400, 403, 422, 451) and _FILTERED.search(told):
        return Failed(why, verdict=no_answer(f"kept from the model by the endpoint: {one_line(told, 120)}"))
    if status in _STOPS:
        return Failed(f"{why}: {_STOPS[status]}".removesuffix(": "), stop=True)
    if status in _AGAIN or status >= 500:
        return Failed(why, again=True, wait=retry_after(headers), busy=status in (429, 503))
    return Failed(why)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait for: retry-after-ms, or Retry-After in seconds or as a date."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        told = headers.get(name)
        if told is None:
            continue
        try:
            seconds = float(told) * unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(told).timestamp() - time.time()
            except (ValueError, TypeError, OverflowError):
                continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None


def read_answer(body: bytes, limit: int) -> Answer:
    """limit: tokens that were asked for at most. Raises Failed where it holds no answer."""
    try:
        found = json.loads(body.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        raise _malformed(_no_json(body)) from None
    if not isinstance(found, dict):
        raise _malformed(f"JSON that is no object, {one_line(json.dumps(found), 60)}")
    _no_error(found)
    choices = found.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _malformed(f"a response without a choice: {one_line(_message(found))}".removesuffix(": "))
    odd = [] if len(choices) == 1 else [f"the endpoint sends {len(choices)} choices for one; the first is taken"]
    choice = next((c for c in choices if isinstance(c, dict) and c.get("index") == 0), choices[0])
    _no_error(choice)
    message, finish = choice.get("message"), choice.get("finish_reason")
    reason = finish.casefold() if isinstance(finish, str) else ""
    if reason in _BROKEN:
        raise _malformed(f"an answer that was broken off (finish_reason {one_line(reason, 40)})")
    if message is None and reason in _STOPPED:
        message = {}
    if not isinstance(message, dict):
        raise _malformed("a choice without a message")
    return _answer(message, finish, limit, _about(found), odd)


def _no_error(told: Mapping[str, Any]) -> None:
    """Raises Failed where a response, or its choice, tells of one."""
    error = told.get("error")
    if error:
        code = str(error.get("code")) if isinstance(error, dict) else ""
        raise by_status(int(code) if re.fullmatch("[45][0-9][0-9]", code) else 502, one_line(_message(told)), {})


def _answer(message: Mapping[str, Any], finish: Any, limit: int, about: dict[str, Any], odd: list[str]) -> Answer:
    text, thought, refusal = _content(message.get("content"))
    refusal = refusal or _string(message.get("refusal"))
    apart = (_string(message.get(name)) for name in ("reasoning_content", "reasoning", "thinking"))
    reasoning = next(filter(None, apart), "") or thought
    calls = bool(message.get("tool_calls") or message.get("function_call"))
    about["finish_reason"] = finish if isinstance(finish, str) else None
    if not isinstance(finish, str):
        odd.append("the endpoint gives no finish_reason, so answers that were cut off are not told from others")
    if isinstance(message.get("selfcorrect"), dict):
        odd.append(
            "warning: the endpoint is `selfcorrect serve` and plays attempts of its own in every answer, so that "
            "attempts are counted inside of attempts; --body '{\"attempts\": 1}' asks the model itself"
        )
    most = _LONGEST * limit + 4096
    reasoning = reasoning[:most]
    if len(text) > most:  # it did not stop at the limit
        return Answer(text[:most], reasoning, True, truncated("far longer than max_new_tokens"), about, tuple(odd))
    verdict, reason = None, finish.casefold() if isinstance(finish, str) else ""
    if reason in CUT_OFF:
        verdict = truncated("ran into max_new_tokens" + ("" if text.strip() else ", before the answer began"))
    elif reason in _STOPPED:
        verdict = no_answer("stopped by the endpoint's content filter")
    elif not text.strip():
        if refusal.strip():
            text, verdict = refusal, no_answer(f"refused: {one_line(refusal, 120)}")
        elif calls:
            verdict = no_answer("a call of a tool in place of an answer")
        else:
            verdict = no_answer("nothing but reasoning apart" if reasoning.strip() else "the answer is empty")
    return Answer(text, reasoning, reason in CUT_OFF, verdict, about, tuple(odd))


def _content(content: Any) -> tuple[str, str, str]:
    """Text, reasoning and refusal of a message's content: a text, null, or a list of parts."""
    if content is None or isinstance(content, str):
        return _string(content), "", ""
    if not isinstance(content, list):
        raise _malformed(f"a message whose content is of type {type(content).__name__}")
    told: dict[str, list[str]] = {"text": [], "reasoning": [], "refusal": []}
    for part in content:
        if isinstance(part, str):
            told["text"].append(_string(part))
        elif isinstance(part, dict):
            kind = str(part.get("type", "text"))
            of = "reasoning" if "think" in kind or "reason" in kind else "refusal" if kind == "refusal" else "text"
            told[of].append(_part(part, (kind, "text", "content", "thinking", "reasoning")))
    return "".join(told["text"]), "".join(told["reasoning"]), "".join(told["refusal"])


def _part(part: Mapping[str, Any], names: Sequence[str]) -> str:
    for name in names:
        value = part.get(name)
        if isinstance(value, dict):
            value = value.get("value")
        if isinstance(value, list):
            return _content(value)[0]
        if isinstance(value, str) and name != "type":
            return _string(value)
    return ""


def _string(value: Any) -> str:
    return plain_text(value) if isinstance(value, str) else ""


def _about(found: Mapping[str, Any]) -> dict[str, Any]:
    """Short facts of a response, whatever their types claim to be."""
    told: dict[str, Any] = {
        name: one_line(value)
        for name in ("id", "model", "system_fingerprint")
        if isinstance(value := found.get(name), str)
    }
    usage = found.get("usage")
    if isinstance(usage, dict):
        told["usage"] = {
            name: usage[name]
            for name in ("prompt_tokens", "completion_tokens", "total_tokens")
            if is_number(usage.get(name))
        }
    return told


def is_number(value: Any) -> bool:
    """Whether a value is a whole number that can be a count of tokens."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9


def _no_json(body: bytes) -> str:
    start = body[:200].decode("utf-8", "replace").lstrip().lower()
    if not start:
        return "an empty body"
    if start.startswith(("<!doctype", "<html")):
        return f"a web page in place of JSON ({error_text(body)[:80]})"
    if start.startswith(("data:", "event:")):
        return "a stream of events, which was not asked for"
    return f"a body that is no JSON ({one_line(start, 60)!r})"


def redacted(answer: Answer, clean: Callable[[str], str]) -> Answer:
    """The answer with every text passed through `clean`."""
    grade = answer.verdict
    if grade is not None:
        grade = Grade(grade.outcome, grade.reward, grade.answer, clean(grade.detail))
    about = {name: clean(value) if isinstance(value, str) else value for name, value in answer.about.items()}
    return Answer(clean(answer.text), clean(answer.reasoning), answer.cut, grade, about, answer.odd)
