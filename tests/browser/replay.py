"""ComfyUI's editor without a ComfyUI: the package of its frontend, the pack's files, and recorded answers.

Nodes, locales, scripts, help pages and example workflows are at the addresses where ComfyUI has them. Nothing runs: a
prompt is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import threading
from pathlib import Path

from aiohttp import WSMsgType, web

REPOSITORY = Path(__file__).resolve().parents[2]
PACK = "diffusion-blend"
RECORDING = Path(__file__).with_name("recording.json")
EMPTY_LISTS = ("/experiment/models", "/userdata", "/v2/userdata", "/embeddings")


def editor_files() -> Path | None:
    """The folder of the editor's own files, or None where its package is not installed."""
    spec = importlib.util.find_spec("comfyui_frontend_package")
    return Path(spec.submodule_search_locations[0]) / "static" if spec else None


def translations() -> dict:
    """What ComfyUI gathers from a pack's locales/: main.json as it is, the other files by their names."""
    gathered = {}
    for language in (REPOSITORY / "locales").iterdir():
        texts = {file.stem: json.loads(file.read_text(encoding="utf8")) for file in sorted(language.glob("*.json"))}
        gathered[language.name] = texts.pop("main", {}) | texts
    return gathered


def scripts(static: Path) -> list[str]:
    """The addresses of the scripts that the editor loads: its own extensions', and the pack's."""
    extensions = [f"/{file.relative_to(static).as_posix()}" for file in (static / "extensions").rglob("*.js")]
    folder = REPOSITORY / "web"
    return extensions + [f"/extensions/{PACK}/{file.relative_to(folder).as_posix()}" for file in folder.rglob("*.js")]


def application() -> web.Application:
    """All routes."""
    static = editor_files()
    recorded = json.loads(RECORDING.read_text(encoding="utf8"))
    settings: dict = {}
    workflows = REPOSITORY / "example_workflows"
    answers = recorded["answers"] | {
        "/extensions": scripts(static),
        "/i18n": translations(),
        "/workflow_templates": {PACK: sorted(file.stem for file in workflows.glob("*.json"))},
        "/settings": settings,
        "/internal/folder_paths": {},
        **{path: [] for path in EMPTY_LISTS},
    }

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response(answers[request.path.removeprefix("/api")])

    async def keep_setting(request: web.Request) -> web.Response:
        sent = await request.json()
        settings.update({request.match_info["name"]: sent} if "name" in request.match_info else sent)
        return web.Response()

    async def socket(request: web.Request) -> web.WebSocketResponse:
        connection = web.WebSocketResponse()
        await connection.prepare(request)
        idle = {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "recorded"}
        await connection.send_json({"type": "status", "data": idle})
        async for message in connection:
            if message.type is WSMsgType.ERROR:
                break
        return connection

    async def page(_: web.Request) -> web.FileResponse:
        return web.FileResponse(static / "index.html")

    routes = [("GET", path, answer) for path in answers]
    routes += [("POST", "/settings", keep_setting), ("POST", "/settings/{name}", keep_setting), ("GET", "/ws", socket)]
    app = web.Application()
    for prefix in ("", "/api"):
        app.add_routes([web.route(method, prefix + path, handler) for method, path, handler in routes])
    app.add_routes([web.static(f"/extensions/{PACK}", REPOSITORY / "web")])
    app.add_routes([web.static(f"/api/workflow_templates/{PACK}", workflows), web.get("/", page)])
    app.add_routes([web.static("/", static)])
    return app


@contextlib.contextmanager
def served():
    """The address of the editor, while the block runs."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def wait_for(work):
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    runner = web.AppRunner(application(), shutdown_timeout=1)
    wait_for(runner.setup())
    wait_for(web.TCPSite(runner, "127.0.0.1", 0).start())
    try:
        yield "http://{}:{}".format(*runner.addresses[0])
    finally:
        wait_for(runner.cleanup())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
