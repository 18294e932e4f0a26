"""The pages and their addresses. Everything is read where it lies when somebody looks; nothing is kept up in between.

    /                          runs
    /runs/RUN                  a run;       /runs/RUN/devices/DEVICE a device in it
    /runs/RUN/stop, resume     asks (GET), and does it (POST);     /start the same for new runs
    /runs/RUN/files/NAME       what a run has left
    /fleet                     devices

With `?live=TAGS` a page gives, as JSON, those of its parts whose tags are not among these: what a browser swaps in.
RUN is the run's folder below the one that is served, with `~` for `/`.
"""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from edge_runtime.coordinator import runs, units
from edge_runtime.coordinator.dashboard import density, downloadable, tables, views, words
from edge_runtime.coordinator.dashboard.acting import Acting
from edge_runtime.coordinator.dashboard.fleet import Roster
from edge_runtime.coordinator.dashboard.guard import FILE_POLICY, Asgi, Door, Guard
from edge_runtime.coordinator.dashboard.picture import Picture, RunReader
from edge_runtime.coordinator.report import refused
from edge_runtime.errors import EdgeError, RunError

_HERE = Path(__file__).parent
_LOOK_S = 1.0
"""Folders are looked through for runs so often, if somebody looks."""
_MOST_FORM_BYTES = 4096
_DONE = {
    "stop": "The coordinator has ended; the run can go on.",
    "resume": "The run goes on.",
    "start": "The run was started.",
}
_ASKED = {
    "stop": (
        "Stop this run?",
        (
            "Its coordinator ends at once. Nothing is lost: devices keep what was not acknowledged, and the run can go "
            "on where it was. A demo ends with its coordinator, and a simulation begins anew."
        ),
    ),
    "resume": (
        "Go on with this run?",
        ("A coordinator is started on this machine, with the run's own settings. It goes on when the dashboard ends."),
    ),
}


class Dashboard:
    """What the pages are made of."""

    def __init__(self, root: Path, door: Door, roster: Roster, acting: Acting | None) -> None:
        """Show the runs in `root`; without `acting` nothing can be done."""
        self.root, self.door, self.roster, self.acting = root, door, roster, acting
        self._readers: dict[str, RunReader] = {}
        self._due_s = 0.0
        self._pages = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE / "pages"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        self._pages.globals.update(
            units=units, when=words.when, troubled=words.TROUBLED, quote=lambda text: quote(text, safe="")
        )
        self._pages.globals["m"] = self._pages.get_template("macros.html").module

    def readers(self) -> dict[str, RunReader]:
        """Give the runs that are there, by what they are called in addresses."""
        now = time.monotonic()
        if now >= self._due_s:
            found = {self._name(folder): folder for folder in runs.folders(self.root)}
            known = self._readers
            self._readers = {name: known.get(name) or RunReader(folder) for name, folder in found.items()}
            self._due_s = now + _LOOK_S
        return self._readers

    def _name(self, folder: Path) -> str:
        return "~".join(folder.relative_to(self.root).parts) or folder.resolve().name

    def reader(self, request: Request) -> RunReader:
        """Find the run of an address: one of those that are there, or none."""
        found = self.readers().get(request.path_params["run"])
        if found is None:
            raise HTTPException(404, "there is no such run")
        return found

    def context(self, page: str, **more: Any) -> dict[str, Any]:
        """Give what every page may say."""
        base = {"page": page, "acts": self.acting is not None, "word": self.door.word, "now": time.time(), "said": ""}
        return {**base, "startable": sorted(self.acting.files) if self.acting else [], **more}

    def answer(self, request: Request, page: str, context: dict[str, Any], status: int = 200) -> Response:
        """Give a page, or (`?live=`) those of its parts that have changed."""
        template = self._pages.get_template(f"{page}.html")
        have = request.query_params.get("live")
        if have is None:
            return HTMLResponse(template.render(context), status)
        parts, known = {}, set(have.split(","))
        for name, block in template.blocks.items():
            if name.startswith("live_"):
                html = "".join(block(template.new_context(context)))
                tag = hashlib.sha256(f"{name}{html}".encode()).hexdigest()[:12]
                if tag not in known:
                    parts[name] = {"tag": tag, "html": html}
        body = json.dumps({"parts": parts}, separators=(",", ":")).encode()
        return Response(body, media_type="application/json")


class Pages:
    """Answers requests, each in a thread, as all of them read files."""

    def __init__(self, dashboard: Dashboard) -> None:
        self._dashboard = dashboard

    def runs(self, request: Request) -> Response:
        """List the runs, those that go on first."""
        listed = []
        for name, reader in self._dashboard.readers().items():
            try:
                listed.append((name, runs.standing(reader.folder)))
            except RunError:
                continue  # its journal is just being made, or damaged: `run show` says so
        order = {"running": 0, "stopped": 1, "finished": 2}
        listed.sort(key=lambda one: one[1].started, reverse=True)
        listed.sort(key=lambda one: order.get(one[1].state, 3))
        said = _DONE.get(request.query_params.get("did", ""), "")
        context = self._dashboard.context("runs", runs=listed, root=str(self._dashboard.root), said=said)
        return self._dashboard.answer(request, "runs", context)

    def run(self, request: Request) -> Response:
        """Show a run."""
        reader, name = self._dashboard.reader(request), request.path_params["run"]
        picture, sort = reader.picture(), request.query_params.get("sort", "")

        def address(device: str) -> str:
            return f"/runs/{quote(name, safe='')}/devices/{quote(device, safe='')}"

        now = time.time()
        context = self._run_context(picture, reader, name) | {
            "said": _DONE.get(request.query_params.get("did", ""), ""),
            "tiles": views.tiles(picture),
            "charts": views.charts(picture),
            "rounds": tables.rounds_table(picture),
            "devices": tables.devices_table(picture, address, sort, now),
            "rejected": picture.report["rejected"][-20:][::-1],
            "refused": refused(picture.report)[:20],
            "files": downloadable.files(reader.folder),
        }
        return self._dashboard.answer(request, "run", context)

    def _run_context(self, picture: Picture, reader: RunReader, name: str) -> dict[str, Any]:
        last = self._dashboard.acting.last_words(reader.folder) if self._dashboard.acting else ""
        at = words.standing(picture)
        return self._dashboard.context("run", name=name, picture=picture, standing=picture.standing, at=at, words=last)

    def device(self, request: Request) -> Response:
        """Show a device in a run."""
        reader, device = self._dashboard.reader(request), request.path_params["device"]
        picture = reader.picture()
        place = next((at for at, one in enumerate(picture.report["devices"]) if one["id"] == device), None)
        seen = picture.present.devices.get(device) if picture.present else None
        if place is None and seen is None and device not in picture.known:
            raise HTTPException(404, "there is no such device in this run")
        context = self._run_context(picture, reader, request.path_params["run"]) | {
            "device": device,
            "state": words.state(picture, device),
            "unfit": picture.unfit.get(device, ""),
            "choice": picture.report["devices"][place]["choice"] if place is not None else None,
            "seen": words.ago(seen.seen, time.time()) if seen else "–",
            "profile": words.profile(seen) if seen else [],
            "tiles": views.device_tiles(picture, place) if place is not None else [],
            "charts": views.device_charts(picture, device),
            "history": tables.history_table(picture, device),
            "layers": tables.layer_rows(density.layers(picture, device)),
            "files": downloadable.of_device(reader.folder, device),
        }
        return self._dashboard.answer(request, "device", context)

    def fleet(self, request: Request) -> Response:
        """List all devices."""
        readers = self._dashboard.readers()
        names = {reader.folder: name for name, reader in readers.items()}
        now, listed = time.time(), []
        for one in self._dashboard.roster.devices(list(names)):
            address = ""
            if one.run is not None:
                address = f"/runs/{quote(names[one.run], safe='')}/devices/{quote(one.id, safe='')}"
            run = names[one.run] if one.run is not None else ""
            listed.append(
                (one, address, run, words.ago(one.seen.seen, now), dict(words.profile(one.seen)), words.power(one.seen))
            )
        return self._dashboard.answer(request, "fleet", self._dashboard.context("fleet", devices=listed))

    def file(self, request: Request) -> Response:
        """Hand over a file that a run has left: one of those that the page lists."""
        path = downloadable.find(self._dashboard.reader(request).folder, request.path_params["name"])
        if path is None:
            raise HTTPException(404, "the run has not left such a file")
        shown = path.suffix == ".html"
        headers = {"content-security-policy": FILE_POLICY}
        return FileResponse(
            path, filename=path.name, headers=headers, content_disposition_type="inline" if shown else "attachment"
        )

    def ask(self, request: Request, fault: str = "") -> Response:
        """Ask whether a run is to be stopped, or to go on."""
        self._acting()
        reader, what, name = self._dashboard.reader(request), request.path_params["what"], request.path_params["run"]
        if what not in _ASKED:
            raise HTTPException(404, "there is no such page")
        now, back = runs.standing(reader.folder), f"/runs/{quote(name, safe='')}"
        about = [
            ("run", name),
            ("algorithm", now.algorithm),
            ("state", now.state),
            ("round", f"{now.round} of {now.rounds}"),
        ]
        context = self._dashboard.context("ask", what=what, asked=_ASKED[what], back=back, about=about, fault=fault)
        return self._dashboard.answer(request, "ask", context, 409 if fault else 200)

    def act(self, request: Request, form: dict[str, str]) -> Response:  # noqa: ARG002  # its word was looked at
        """Stop a run, or go on with it."""
        acting, reader, what = self._acting(), self._dashboard.reader(request), request.path_params["what"]
        if what not in _ASKED:
            raise HTTPException(404, "there is no such page")
        try:
            (acting.stop if what == "stop" else acting.resume)(reader.folder)
        except EdgeError as error:
            return self.ask(request, str(error))
        return RedirectResponse(f"/runs/{quote(request.path_params['run'], safe='')}?did={what}", 303)

    def ask_start(self, request: Request, fault: str = "") -> Response:
        """Show what may be started."""
        acting = self._acting()
        files = [(name, str(path), acting.summary(name)) for name, path in sorted(acting.files.items())]
        context = self._dashboard.context("start", files=files, fault=fault)
        return self._dashboard.answer(request, "start", context, 409 if fault else 200)

    def start(self, request: Request, form: dict[str, str]) -> Response:
        """Start a run."""
        acting = self._acting()
        if form.get("file") not in acting.files:
            raise HTTPException(404, "that is not among what may be started")
        if form.get("sure") != "yes":
            return self.ask_start(request, "tick the box to say that you mean it")
        try:
            acting.start(form["file"])
        except EdgeError as error:
            return self.ask_start(request, str(error))
        return RedirectResponse("/?did=start", 303)

    def _acting(self) -> Acting:
        if self._dashboard.acting is None:
            raise HTTPException(403, "this dashboard only shows")
        return self._dashboard.acting

    def doing(self, do: Callable[[Request, dict[str, str]], Response]) -> Any:
        """Let `do` answer forms of ours."""

        async def answer(request: Request) -> Response:
            form = await _form(request)
            if not self._dashboard.door.word or form.get("word") != self._dashboard.door.word:
                raise HTTPException(403, "that did not come from a page of this dashboard")
            return await run_in_threadpool(do, request, form)

        return answer

    def fault(self, request: Request, error: Exception) -> Response:
        """Say what cannot be shown."""
        status = error.status_code if isinstance(error, HTTPException) else 503
        text = error.detail if isinstance(error, HTTPException) else str(error)
        return self._dashboard.answer(request, "fault", self._dashboard.context("fault", text=text), status)


async def _form(request: Request) -> dict[str, str]:
    data = b""
    async for piece in request.stream():
        data += piece
        if len(data) > _MOST_FORM_BYTES:
            raise HTTPException(413, "no form of ours is so large")
    return {name: values[-1] for name, values in parse_qs(data.decode("latin-1")).items()}


def build(root: Path, door: Door, roster: Roster, acting: Acting | None) -> Asgi:
    """Make the application that serves the runs in `root`."""
    pages = Pages(Dashboard(root, door, roster, acting))
    routes = [
        Route("/", pages.runs),
        Route("/fleet", pages.fleet),
        Route("/start", pages.ask_start, methods=["GET"]),
        Route("/start", pages.doing(pages.start), methods=["POST"]),
        Route("/runs/{run}", pages.run),
        Route("/runs/{run}/devices/{device}", pages.device),
        Route("/runs/{run}/files/{name:path}", pages.file),
        Route("/runs/{run}/{what}", pages.ask, methods=["GET"]),
        Route("/runs/{run}/{what}", pages.doing(pages.act), methods=["POST"]),
        Route("/static/report.css", lambda request: FileResponse(_HERE.parent / "report.css")),
        Mount("/static", StaticFiles(directory=_HERE / "static")),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: pages.fault, EdgeError: pages.fault})
    return Guard(GZipMiddleware(app, minimum_size=1024), door)
