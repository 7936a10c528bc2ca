"""As much of wandb's server as its client asks for: real HTTP on loopback, runs kept in memory."""
# ruff: noqa: N802, N815 - the names are the protocol's

import gzip
import io
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from stored_run import StoredRun

ENTITY = "team"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "WandbServer"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.bodies.append(body)
        if not self.server.misbehave(self):
            self.reply(200, self.server.answer(self.path, body))

    do_PUT = do_POST

    def do_GET(self) -> None:
        if self.server.misbehave(self):
            return
        if not self.path.startswith("/parquet/"):
            self.reply(404, {})
            return
        data = self.server.parquet(self.path.removeprefix("/parquet/"))
        total, span = len(data), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.send_response(206 if span else 200)
        if span:
            data = data[int(span[1]) : int(span[2]) + 1]
            self.send_header("Content-Range", f"bytes {span[1]}-{span[2]}/{total}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def reply(self, code: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class WandbServer(ThreadingHTTPServer):
    """Start with `with WandbServer() as server`; `behaviour` says how it fails."""

    daemon_threads = True

    def __init__(self, behaviour: str = "well", page: int = 1000) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour, self.page = behaviour, page
        self.runs: dict[str, StoredRun] = {}
        self.bodies: list[bytes] = []
        self.operations: list[str] = []
        self.unknown: list[str] = []
        self.artifacts: list[tuple[str, str]] = []
        self.thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "WandbServer":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.behaviour = "gone"
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        """Say nothing: clients hang up as they like."""

    def environment(self) -> dict[str, str]:
        """What a client needs to come here."""
        return {
            "WANDB_BASE_URL": f"http://127.0.0.1:{self.server_port}",
            "WANDB_API_KEY": "k" * 40,
            "WANDB_ERROR_REPORTING": "false",
        }

    def misbehave(self, request: Handler) -> bool:
        """Fail as asked; return whether the request needs no answer any more."""
        if self.behaviour.isdecimal():
            request.reply(int(self.behaviour), {"error": f"planted {self.behaviour}"})
            return True
        if self.behaviour == "dies at the first rows" and "file_stream" in request.path:
            self.__exit__()
        if self.behaviour == "gone":
            request.close_connection = True
            return True
        if self.behaviour == "slow":
            time.sleep(5)
        if self.behaviour == "mute" or (
            self.behaviour == "mute at the end" and "file_stream" in request.path
        ):
            while self.behaviour != "gone":
                time.sleep(0.2)
            return True
        return False

    def answer(self, path: str, body: bytes) -> Any:
        """Return the JSON answer to a request that is treated well."""
        if path == "/graphql":
            return self._graphql(json.loads(body))
        stream = re.fullmatch(r"/files/[^/]*/[^/]*/([^/]+)/file_stream", path)
        if stream:
            self._stream(self.runs[stream[1]], json.loads(body))
            return {"exitcode": None, "limits": {}}
        return {}

    def _stream(self, run: StoredRun, sent: dict[str, Any]) -> None:
        files = sent.get("files", {})
        for line in files.get("wandb-history.jsonl", {}).get("content", []):
            run.history.append(json.loads(line))
        for line in files.get("wandb-summary.json", {}).get("content", []):
            run.summary = json.loads(line)
        if sent.get("complete"):
            run.state = "finished" if sent.get("exitcode") == 0 else "failed"

    def _graphql(self, request: dict[str, Any]) -> Any:
        text, variables = request["query"], request.get("variables") or {}
        found = re.search(r"(?:query|mutation)\s+(\w+)", text)
        name = found[1] if found else "?"
        self.operations.append(name)
        handler = getattr(self, f"on_{name}", None)
        if handler is None:
            self.unknown.append(text)
            return {"data": {}}
        return {"data": handler(variables, text)}

    def on_RunResumeStatus(self, variables: dict[str, Any], _: str) -> Any:
        run = self.runs.get(variables["name"])
        bucket = None
        if run is not None:
            tail = [json.dumps(row) for row in run.history[-1:]]
            bucket = {
                "id": run.name,
                "name": run.name,
                "summaryMetrics": json.dumps(run.summary),
                "displayName": run.display_name,
                "logLineCount": 0,
                "historyLineCount": len(run.history),
                "eventsLineCount": 0,
                "historyTail": json.dumps(tail),
                "eventsTail": "[]",
                "config": run.config,
                "tags": run.tags,
                "notes": None,
                "wandbConfig": json.dumps({"t": 1}),
            }
        entity = {"id": "e", "name": ENTITY}
        return {
            "model": {"id": "p", "name": variables["project"], "entity": entity}
            | {"bucket": bucket}
        }

    def on_UpsertBucket(self, variables: dict[str, Any], _: str) -> Any:
        name = variables["name"]
        known = name in self.runs
        run = self.runs.setdefault(name, StoredRun(name, variables["project"]))
        run.state = "running"
        for attribute, key in (
            ("group", "groupName"),
            ("job_type", "jobType"),
            ("display_name", "displayName"),
            ("tags", "tags"),
            ("config", "config"),
        ):
            if variables.get(key):
                setattr(run, attribute, variables[key])
        project = {"id": "p", "name": run.project, "entity": {"id": "e", "name": ENTITY}}
        return {
            "upsertBucket": {
                "bucket": {
                    "id": run.name,
                    "name": run.name,
                    "displayName": run.display_name,
                    "description": None,
                    "config": run.config,
                    "sweepName": None,
                    "project": project,
                    "historyLineCount": len(run.history),
                },
                "inserted": not known,
            }
        }

    def on_GetDefaultEntity(self, _: dict[str, Any], __: str) -> Any:
        return {"viewer": {"id": "u", "entity": ENTITY}}

    def on_CreateRunFiles(self, variables: dict[str, Any], _: str) -> Any:
        url = f"http://127.0.0.1:{self.server_port}/upload/"
        files = [{"name": f, "uploadUrl": url + f} for f in variables["files"]]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def on_Viewer(self, _: dict[str, Any], __: str) -> Any:
        return {
            "viewer": {
                "id": "u",
                "entity": ENTITY,
                "username": "me",
                "flags": "{}",
                "email": "a@b.c",
                "teams": {"edges": []},
            }
        }

    def on_Runs(self, variables: dict[str, Any], _: str) -> Any:
        filters = json.loads(variables.get("filters") or "{}")
        project = [r for r in self.runs.values() if r.project == variables["project"]]
        if not project:
            return {"project": None}
        chosen = [r for r in project if filters.get("group", r.group) == r.group]
        begin = int(variables.get("cursor") or 0)
        page = chosen[begin : begin + min(self.page, int(variables.get("perPage") or 50))]
        edges = [{"node": run.node(), "cursor": str(begin + i + 1)} for i, run in enumerate(page)]
        end = begin + len(page)
        return {
            "project": {
                "internalId": "1",
                "runCount": len(chosen),
                "readOnly": False,
                "runs": {
                    "edges": edges,
                    "pageInfo": {"endCursor": str(end), "hasNextPage": end < len(chosen)},
                },
            }
        }

    def on_RunHistoryKeys(self, variables: dict[str, Any], _: str) -> Any:
        run = self.runs[variables["name"]]
        return {"project": {"run": {"historyKeys": run.node()["historyKeys"]}}}

    def on_RunParquetHistory(self, variables: dict[str, Any], _: str) -> Any:
        run = self.runs[variables["runName"]]
        urls = [f"http://127.0.0.1:{self.server_port}/parquet/{run.name}"] if run.exported else []
        history = {"parquetUrls": urls, "liveData": run.history[run.exported :]}
        return {"project": {"run": {"parquetHistory": history}}}

    def on_HistoryPage(self, variables: dict[str, Any], _: str) -> Any:
        run = self.runs[variables["run"]]
        live = run.history[run.exported :]
        span = range(variables["minStep"], variables["maxStep"])
        rows = [json.dumps(row) for row in live if row["_step"] in span]
        return {"project": {"run": {"history": rows[: variables["pageSize"]]}}}

    def parquet(self, name: str) -> bytes:
        """The exported part of a run's history, as the server stores it for finished runs."""
        run = self.runs[name]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(run.history[: run.exported]), sink)
        return sink.getvalue()

    def on_ArtifactType(self, _: dict[str, Any], __: str) -> Any:
        return {"project": {"artifact": None}}

    def on_ServerFeaturesQuery(self, _: dict[str, Any], __: str) -> Any:
        return {"serverInfo": {"features": []}}

    def on_CreateArtifact(self, variables: dict[str, Any], _: str) -> Any:
        sent = variables["input"]
        self.artifacts.append((sent["artifactCollectionName"], sent["artifactTypeName"]))
        known = {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": known}}
