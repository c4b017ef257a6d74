"""The page at /, and what it asks beside the chat interface: what is served, problems, grades."""

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from selfcorrect.errors import DataError, UserError
from selfcorrect.grading.thoughts import grade_answers
from selfcorrect.report.page import with_common
from selfcorrect.serving.guards import Json, read_body
from selfcorrect.serving.protocol import MOST_ATTEMPTS, ApiError, invalid, read_json
from selfcorrect.tasks import Task
from selfcorrect.tasks.background import Background
from selfcorrect.types import Grade, Outcome, Problem

_LONGEST = 100_000  # characters of a problem or an answer that is graded


@dataclass(frozen=True, slots=True)
class About:
    """What the page tells of the models. base: the name under which the base is asked, if there is one.

    own_words: whether a problem's correction prompt is its task's. opens_thought: whether answers begin inside of one.
    """

    model: str
    base: str | None
    attempts: int
    correction_prompt: str
    source: str
    own_words: bool = False
    opens_thought: bool = False


class Page:
    """task: where problems and grades come from, if there is one. It is used by one thread."""

    def __init__(self, about: About, task: Task | None, problems: list[Problem]) -> None:
        self._about, self._task = about, task
        self._problems = {problem.id: problem for problem in problems}
        self._thread = Background("grader")

    def routes(self) -> list[tuple[str, str, Callable[[Request], Awaitable[Response]]]]:
        return [
            ("GET", "/page/about", self.about),
            ("POST", "/page/problem", self.problem),
            ("POST", "/page/grade", self.grade),
        ]

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._task is not None:
            await asyncio.to_thread(self._task.close)

    async def show(self, request: Request) -> Response:
        html, policy = page()
        headers = {
            "content-security-policy": policy, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer",
            "cross-origin-resource-policy": "same-origin", "x-frame-options": "DENY", "cache-control": "no-cache",
        }  # fmt: skip
        return HTMLResponse(html, headers=headers)

    async def about(self, request: Request) -> Response:
        return Json({
            **asdict(self._about), "most_attempts": MOST_ATTEMPTS,
            "task": self._task.name if self._task else None,
            "problems": [{"id": one.id, "prompt": one.prompt} for one in self._problems.values()],
        })  # fmt: skip

    async def problem(self, request: Request) -> Response:
        """What is typed, as the task asks it."""
        typed = _text(read_json(await read_body(request)), "text")
        found = await self._in_thread(lambda task: self._find(task, typed))
        correction = await self._in_thread(lambda task: task.correction_prompt(found))
        return Json({"id": found.id, "prompt": found.prompt, "correction_prompt": correction})

    async def grade(self, request: Request) -> Response:
        """An attempt's grade. problem: an id, or what was typed; finish_reason: of the attempt."""
        data = read_json(await read_body(request))
        problem, text = _text(data, "problem"), _text(data, "text", empty=True)
        if data.get("finish_reason") == "length":
            grade = Grade(Outcome.TRUNCATED, 0.0, "", "ran into its token limit")
        else:
            grade = await self._in_thread(lambda task: self._grade(task, problem, text))
        told = {"outcome": str(grade.outcome), "answer": grade.answer, "detail": grade.detail}
        return Json(told | {"graded": grade.outcome is not Outcome.GRADER_FAILED, "correct": grade.correct})

    async def _in_thread(self, work: Callable[[Task], Any]) -> Any:
        if self._task is None:
            raise ApiError(404, "no task is served; --task names one", code="no_task")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._task)
        except DataError as error:
            raise invalid(str(error), "problem") from None
        except UserError as error:  # a judge that cannot confine programs here, and the like
            raise ApiError(503, str(error), code="not_graded") from None

    def _find(self, task: Task, text: str) -> Problem:
        return self._problems.get(text.strip()) or task.parse(text)

    def _grade(self, task: Task, problem: str, text: str) -> Grade:
        return grade_answers(task.grade, [(self._find(task, problem), text, self._about.opens_thought)])[0]


def _text(data: dict[str, Any], name: str, *, empty: bool = False) -> str:
    text = data.get(name)
    if not isinstance(text, str) or not (text.strip() or empty) or len(text) > _LONGEST:
        raise invalid(f"{name}: must be text, of {_LONGEST:,} characters at most", name)
    return text.encode("utf-8", "replace").decode()


@cache
def page() -> tuple[str, str]:
    """The whole page as one text, and the Content-Security-Policy that lets nothing but its own parts in."""
    here = Path(__file__).parent
    style, script = with_common(here / "page.css"), with_common(here / "page.js")
    html = (here / "page.html").read_text(encoding="utf-8")
    digests = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (style, script)]
    policy = (
        f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html.replace("/*style*/", style).replace("/*script*/", script), policy
