"""The explorer over HTTP: pages of the report, and questions that a `Session` answers.

Nothing but the report's folder and this room's own files can be read. Questions are asked by POST,
with a header that pages of other origins cannot set. One computation at a time; others wait, and
leave when their caller does. What takes minutes is a job, a process of its own.
"""

import asyncio
import json
import secrets
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from condec.basis.errors import CondecError, DataError, DependencyError, OptionError, StoreError
from condec.explorer.jobs import MOST_WAITING, BusyError
from condec.explorer.questions import COMPUTED, File, answer
from condec.explorer.session import Session
from condec.explorer.uploads import MOST_BYTES
from condec.modes.annotations import read_names, write_names
from condec.report.build import environment

try:
    import anyio
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.datastructures import MutableHeaders
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, RedirectResponse, Response
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise DependencyError(
        "explore: the explorer is not installed; pip install 'condec[explorer]'"
    ) from error

_HERE: Final = Path(__file__).parent
_REPORT: Final = _HERE.parent / "report" / "static"
_HOME: Final = ("127.0.0.1", "localhost", "::1")
_PORTS: Final = range(8765, 8785)
_GONE: Final = 499
"""Status, as nginx has it, of an answer for which nobody waits."""
_POLICY: Final = (
    "default-src 'none'; script-src {script}; style-src 'self'{inline}; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_COOKIE: Final = "condec-token"
_ASSETS: Final = "/report/assets"
"""Style and scripts of a report, which come from the package."""


class _Work:
    """Does one computation at a time, all in one thread: others keep memory of their own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "condec-explorer")
        self._n_waiting = 0

    def close(self) -> None:
        """Leave out what waits; what is computed ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def do(self, receive: Receive, function: Callable[[], Any]) -> Any:
        """Return what a function returns, once it is its turn; None where the caller has left."""
        if self._n_waiting >= MOST_WAITING:
            raise BusyError(f"explore: {MOST_WAITING} questions wait already; ask again later")
        self._n_waiting += 1
        result, failure = None, None
        try:
            async with anyio.create_task_group() as group:

                async def leave() -> None:
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    group.cancel_scope.cancel()

                group.start_soon(leave)
                try:
                    loop = asyncio.get_running_loop()
                    result = await loop.run_in_executor(self._thread, function)
                except CondecError as error:  # by itself, not as one of a group
                    failure = error
                group.cancel_scope.cancel()
        finally:
            self._n_waiting -= 1
        if failure is not None:
            raise failure
        return result


class _Guard:
    """Lets in only what comes from the explorer's own pages, and says what pages may load.

    Hosts are checked, so that no other name leads here; methods other than GET need the header
    ``X-Condec`` and, where there is one, an origin that is this server. With a `token` nothing is
    answered without it: in the address the first time (``?token=``), then in a cookie.
    """

    def __init__(self, app: ASGIApp, *, hosts: tuple[str, ...], token: str = "") -> None:
        self.app, self.hosts, self.token = app, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope)
        own = f"{request.url.scheme}://{request.headers.get('host', '')}"
        refused = self._refused(request, own)

        async def safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                # A report may come from anybody: of its scripts only ours is run, from the package.
                of_report = request.url.path.startswith("/report/")
                script = f"{own}{_ASSETS}/" if of_report else f"{own}/static/"
                inline = " 'unsafe-inline'" if of_report else ""
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY.format(script=script, inline=inline)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers["Cache-Control"] = "no-store"
            await send(message)

        return await (refused or self.app)(scope, receive, safe)

    def _refused(self, request: Request, own: str) -> Response | None:
        host = request.headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if name.strip("[]").lower() not in self.hosts:
            return _said(421, f"explore: {host!r} is not this server's name")
        if request.headers.get("origin", own) != own:
            return _said(403, "explore: asked by a page from elsewhere")
        if request.method not in ("GET", "HEAD") and "x-condec" not in request.headers:
            return _said(403, "explore: asked without the header X-Condec")
        if not self.token:
            return None
        given = request.query_params.get("token", "")
        if given and secrets.compare_digest(given.encode(), self.token.encode()):
            answer = RedirectResponse(request.url.path, 303)
            answer.set_cookie(_COOKIE, self.token, httponly=True, samesite="strict")
            return answer
        known = request.cookies.get(_COOKIE, "")
        if not secrets.compare_digest(known.encode(), self.token.encode()):
            return _said(
                401, "explore: open the address that condec explore printed, with its token"
            )
        return None


def _said(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status)


class _Answers:
    """The routes: each reads a request, asks the session, and says what came."""

    def __init__(self, session: Session) -> None:
        self.session, self.work = session, _Work()
        pages = environment(_HERE / "templates")
        self._page = pages.get_template("explorer.html.jinja")

    async def home(self, _: Request) -> Response:
        about, version = self.session.about, metadata.version("condec")
        return Response(self._page.render(about=about, version=version), media_type="text/html")

    async def annotations(self, request: Request) -> Response:
        """Names that people gave to modes: all of them, those of some sites, or others for all."""
        place = self.session.run.folder.path
        if request.method in ("POST", "PUT"):
            given, alone = await _json(request, MOST_BYTES), request.method == "PUT"
            await run_in_threadpool(write_names, place, given, alone=alone)
        return JSONResponse(await run_in_threadpool(read_names, place))

    async def ask(self, request: Request) -> Response:
        """Answer a question by its name, with what was sent, or with what stands in the address."""
        name = request.path_params["name"]
        given: dict[str, Any] = dict(request.query_params)
        if name == "upload":
            text = request.headers.get("content-type", "").startswith("text/plain")
            given = {"content": await _body(request, MOST_BYTES), "text": text}
        elif request.method == "POST":
            given = await _json(request)
        elif name not in ("inputs", "jobs", "picture"):
            raise OptionError(f"explore: {name!r} is asked by POST")
        question = partial(answer, self.session, name, given)
        if name in COMPUTED:
            found = await self.work.do(request.receive, question)
            if found is None:
                return _said(_GONE, "the caller has left")
        else:
            found = await run_in_threadpool(question)
        if not isinstance(found, File):
            return JSONResponse(found)
        kept = {"Content-Disposition": f'attachment; filename="{found.name}"'} if found.name else {}
        return Response(found.content, media_type=found.kind, headers=kept)


def app_of(session: Session, *, hosts: tuple[str, ...] = _HOME, token: str = "") -> Starlette:
    """Return the application that answers for a session."""
    answers = _Answers(session)
    report = session.run.folder.report.parent
    if report.is_symlink():
        raise StoreError(f"{report}: is a link; what is served lies in the run folder")
    routes = [
        Route("/", answers.home),
        Route("/api/annotations", answers.annotations, methods=["GET", "POST", "PUT"]),
        Route("/api/{name}", answers.ask, methods=["GET", "POST"]),
        Mount(_ASSETS, StaticFiles(directory=_REPORT)),
        Mount("/static/report", StaticFiles(directory=_REPORT)),
        Mount("/static", StaticFiles(directory=_HERE / "static")),
        Mount("/report", StaticFiles(directory=report, check_dir=False)),
    ]
    guard = Middleware(_Guard, hosts=hosts, token=token)
    app = Starlette(
        routes=routes, middleware=[guard], exception_handlers={CondecError: _wrong, 500: _failed}
    )
    app.state.work = answers.work
    return app


def _wrong(_: Request, error: Exception) -> Response:
    kinds = {BusyError: 503, StoreError: 500}
    return _said(next((kinds[kind] for kind in kinds if isinstance(error, kind)), 400), str(error))


def _failed(_: Request, error: Exception) -> Response:
    return _said(500, f"explore: {type(error).__name__}; the terminal of condec explore says more")


async def _body(request: Request, most: int) -> bytes:
    """Read what was sent, and stop where it is too much."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > most:
            raise DataError(f"upload: at most {most // 2**20} MiB")
    return bytes(content)


async def _json(request: Request, most: int = 2**20) -> dict[str, Any]:
    content = await _body(request, most)
    try:
        given = json.loads(content, parse_int=float)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise OptionError("explore: expected a JSON object")
    return given


def serve(session: Session, host: str, port: int | None, say: Callable[[str], None]) -> None:
    """Answer until Ctrl-C, and say where. Another host than this machine's own needs a token.

    Raises OptionError: the port is taken, or the host is no address of this machine.
    """
    if host in ("0.0.0.0", "::", ""):  # which is refused
        raise OptionError(
            f"explore: --host {host!r} has no address that others can open; name the one of this "
            "machine that they know"
        )
    bound = _bound(host, port)
    number = bound.getsockname()[1]
    token = "" if host in _HOME else secrets.token_urlsafe(16)
    names = (*_HOME, host, socket.gethostname(), socket.getfqdn())
    hosts = _HOME if host in _HOME else tuple(name.lower() for name in names)
    shown = f"[{host}]" if ":" in host else host
    end = f"?token={quote(token)}" if token else ""
    say(f"Explorer: http://{shown}:{number}/{end}  (Ctrl-C ends it)")
    app = app_of(session, hosts=hosts, token=token)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    try:
        uvicorn.Server(config).run(sockets=[bound])
    finally:
        app.state.work.close()
        session.jobs.close()


def _bound(host: str, port: int | None) -> socket.socket:
    """Listen at a port: the one that is asked for, else the first that is free."""
    wrong: OSError | None = None
    for number in _PORTS if port is None else [port]:
        bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, number))
            bound.listen()  # so that who reads the address finds somebody there
        except (OSError, OverflowError) as error:
            bound.close()
            wrong = OSError(str(error))
        else:
            return bound
    raise OptionError(f"explore: cannot listen on {host}, port {port or 'any'}: {wrong}")
