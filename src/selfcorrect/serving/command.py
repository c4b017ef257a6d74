"""The command `serve`."""

import asyncio
import errno
import logging
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfcorrect.errors import ConfigError, DataError

if TYPE_CHECKING:
    from selfcorrect.serving.app import Served
    from selfcorrect.serving.engine import Engine
    from selfcorrect.serving.page import Page
    from selfcorrect.serving.sources import Source

KEY = "SELFCORRECT_API_KEY"
UPSTREAM_KEY = "SELFCORRECT_UPSTREAM_API_KEY"
_LISTED = 100  # problems to pick from, all of them held out of training


def serve(
    model: Annotated[str, typer.Argument(help="A run, a model folder, a hub name, or lab.", metavar="MODEL")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings, like task.data=problems.jsonl.", metavar="KEY=VALUE")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    attempts: Annotated[
        int | None, typer.Option(min=1, max=16, help="Where a request names none; the recipe's.")
    ] = None,
    correction_prompt: Annotated[str | None, typer.Option(help="What asks for the next attempt.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Where task and correction prompt come from.")] = None,
    task: Annotated[str | None, typer.Option(help="The page's problems and grades: countdown, math, code.")] = None,
    base: Annotated[str | None, typer.Option(help="The model to show beside it; a run's own is known.")] = None,
    no_base: Annotated[bool, typer.Option("--no-base", help="Load no base model.")] = False,
    upstream: Annotated[str | None, typer.Option(help="An OpenAI-compatible server that has the model.")] = None,
    upstream_model: Annotated[str | None, typer.Option(help="The model's name there.")] = None,
    rows: Annotated[int, typer.Option(min=1, max=256, help="Answers written side by side.")] = 8,
    cors: Annotated[list[str] | None, typer.Option(help="An origin whose pages may ask; * for all.")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="A further host name to answer to.")] = None,
) -> None:
    """Serve an OpenAI-compatible API that plays the attempts. It answers with the last; and a page to watch them.

    A key for it comes from SELFCORRECT_API_KEY, one for --upstream from SELFCORRECT_UPSTREAM_API_KEY.
    """
    need_libraries()
    _check(base, no_base, upstream, upstream_model)
    from selfcorrect.serving import sources

    source = sources.find(model, recipe, overrides or [], task, upstream=upstream is not None)
    key = _key(KEY)
    posed = sources.page_task(source, task, overrides or [])
    words = sources.words(source, posed, correction_prompt)
    own_words = posed is not None and correction_prompt is None and posed.trained_on(source)
    judge = posed.task if posed else None
    problems = _problems(judge, named=task is not None)
    listening = _listen(host, port)
    from selfcorrect.serving.app import Served
    from selfcorrect.serving.page import About, Page

    # Outside of the event loop, so that Ctrl-C ends the loading too.
    local = _local(source, base, rows, with_base=not no_base) if upstream is None else None

    async def run() -> None:
        names, engine, opens = local or await _upstream(str(upstream), source, upstream_model, base)
        number = attempts or source.attempts
        served = Served(tuple(names), number, words, {model: names[0], source.path: names[0]})
        beside = names[1] if len(names) > 1 else None
        shown = About(names[0], beside, number, words.shown, words.source, own_words, opens)
        _say(served, shown.base)
        await _run(served, engine, Page(shown, judge, problems), listening, key, host, cors or [], allow_host or [])

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        raise typer.Exit(130) from None
    finally:
        listening.close()


def _check(base: str | None, no_base: bool, upstream: str | None, upstream_model: str | None) -> None:
    if base is not None and no_base:
        raise ConfigError("--base and --no-base contradict each other; leave one out")
    if upstream is None and upstream_model is not None:
        raise ConfigError("--upstream-model names a model of --upstream URL, which is not there")


def need_libraries() -> None:
    """Raises ConfigError where the extra `serve` is not installed."""
    for name in ("starlette", "uvicorn", "httpx2"):
        try:
            __import__(name)
        except ImportError:
            raise ConfigError(f"serve needs {name}, which is not installed: pip install 'selfcorrect[serve]'") from None


def _key(name: str) -> str | None:
    """A key from the environment. Raises ConfigError where it is set and is none."""
    key = os.environ.get(name)
    if key is not None and not (key.strip() and key == key.strip() and key.isprintable()):
        raise ConfigError(
            f"{name} is set, and holds no key (empty, or with white space around it); unset it or mend it"
        )
    return key


def _problems(task: Any, *, named: bool) -> list[Any]:
    """The page's problems. Where nobody named the task, its data may be missing: problems are then typed."""
    try:
        return task.held_out(_LISTED) if task is not None else []
    except DataError as error:
        if named:
            raise
        typer.echo(f"note: the page lists no problems: {error}", err=True)
        return []


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens, before a model is loaded. Raises ConfigError where it cannot."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, UnicodeError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        of_port = isinstance(error, OverflowError) or getattr(error, "errno", 0) in (errno.EADDRINUSE, errno.EACCES)
        raise ConfigError(
            f"--host {host} --port {port}: cannot listen there: {why}; name another with "
            f"{'--port' if of_port else '--host'}"
        ) from None


def _local(source: "Source", base: str | None, rows: int, *, with_base: bool) -> "tuple[list[str], Engine, bool]":
    from selfcorrect.serving import sources
    from selfcorrect.serving.local import LocalEngine

    lm = sources.load(source)
    models, names = {source.name: lm}, [source.name]
    for note in lm.chat.notes:
        typer.echo(f"note: {note}", err=True)
    beside = sources.load_base(source, lm, base) if with_base else None
    if beside is not None:
        name = beside[0] if beside[0] != source.name else f"{beside[0]}-base"
        models[name] = beside[1]
        names.append(name)
    elif with_base and source.base is not None:
        typer.echo(f"note: its base {source.base} is not there, so it is served alone; --base names another", err=True)
    return names, LocalEngine(models, rows, source.limit), lm.chat.opens_thought


async def _upstream(
    url: str, source: "Source", asked: str | None, base: str | None
) -> "tuple[list[str], Engine, bool]":
    from selfcorrect.models.templates import system_of
    from selfcorrect.serving.upstream import UpstreamEngine, make_client, upstream_models

    client = make_client(url, _key(UPSTREAM_KEY))
    listed = await upstream_models(client)
    there = asked or (source.path if source.path in listed else source.name if source.name in listed else None)
    if there is None and len(listed) == 1:
        there = listed[0]
    for name, option in ((there, "--upstream-model"), (base, "--base")):
        if (option == "--upstream-model" or name is not None) and name not in listed:
            told = f"{option} {name}: not there" if name else f"--upstream has no {source.name}; name one with {option}"
            raise ConfigError(f"{told}; {url} lists {', '.join(listed[:20]) or 'no model'}")
    assert there is not None
    models = {source.name: there} | ({base: base} if base is not None else {})
    settings = source.config.model
    if settings.template_options or settings.chat_template:
        typer.echo(
            "note: model.chat_template and model.template_options are the affair of --upstream, which is to be started "
            "with the like; the model was trained with them",
            err=True,
        )
    return list(models), UpstreamEngine(client, models, system_of(settings)), False


def _say(served: "Served", base: str | None) -> None:
    many = f"{served.attempts} attempts" if served.attempts > 1 else "1 attempt"
    typer.echo(f"model: {served.models[0]}, {many} unless a request names another number")
    if base is not None:
        typer.echo(f"beside it: {base}")
    typer.echo(f"correction prompt, from {served.words.source}: {served.words.shown}")


async def _run(
    served: "Served", engine: "Engine", page: "Page", listening: socket.socket, key: str | None, host: str,
    cors: list[str], names: list[str],
) -> None:  # fmt: skip
    import uvicorn

    from selfcorrect.serving.app import make_app
    from selfcorrect.serving.upstream import is_loopback

    hosts = [host, *names] if is_loopback(host) or names else None
    if not is_loopback(host) and key is None:
        typer.echo(f"warning: everyone who reaches {host} may ask; {KEY} sets a key", err=True)
    app = make_app(served, engine, page, key=key, hosts=hosts, cors=cors)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            if self.should_exit:  # a second Ctrl-C ends at once what the first one let end, and needs no traceback
                logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
            super().handle_exit(sig, frame)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            engine.stop()  # what is being written ends now, so that its connections do
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
        server_header=False,
    )
    address = f"[{host}]" if ":" in host else host
    typer.echo(f"page: http://{address}:{listening.getsockname()[1]}/")
    typer.echo(f"OpenAI-compatible: http://{address}:{listening.getsockname()[1]}/v1")
    await Server(config).serve(sockets=[listening])
