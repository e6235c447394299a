"""A run's growing `metrics.jsonl` -> its page, served live to the browsers of this machine.

The one idea: a browser asks for the page with the mark of what it shows, and gets either nothing or the whole page anew, drawn
here by what draws the report. So it needs no program of its own but one that asks and swaps, and it holds nothing that may go
stale. Two addresses are served, neither is a path: the page and its script. Elsewhere than on this machine a key is demanded;
here the Host header must name it, so that no page of another site reads along (DNS rebinding).
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hornbook.errors import UserError
from hornbook.evals.live import LIVE_POLICY, SCRIPT, live_page, newest
from hornbook.files import holder
from hornbook.stages.keep import METRICS

LOOPBACK = ("127.0.0.1", "localhost")
HEADERS = {
    "Content-Security-Policy": f"{LIVE_POLICY}; frame-ancestors 'none'", "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
}  # fmt: skip


class Watched:
    """A run's rows as they come: each look reads what was added since the last one."""

    def __init__(self, run: Path):
        if run.exists() and not run.is_dir():
            raise UserError("a run is a folder", where=str(run), fix="name the folder that the run writes, as its --out")
        self.run, self.name = run, run.resolve().name
        self.rows, self._read, self._shown = list[dict[str, Any]](), 0, ("", "")

    def look(self) -> None:
        """Read the lines that are whole and new; a file that became shorter is read from its beginning."""
        path = self.run / METRICS
        size = path.stat().st_size if path.is_file() else 0
        if size < self._read:
            self.rows, self._read = [], 0
        if size > self._read:
            with path.open("rb") as file:
                file.seek(self._read)
                added = file.read(size - self._read)
            whole = added[: added.rfind(b"\n") + 1]
            self._read += len(whole)
            self.rows += filter(None, map(_row, whole.splitlines()))

    @property
    def working(self) -> bool:
        return holder(self.run) is not None

    def newest(self) -> dict[str, Any]:
        self.look()
        return {"run": str(self.run), **newest(self.rows, self.working)}

    def page(self) -> tuple[str, str]:
        """The mark of what is known, and the page that shows it."""
        self.look()
        working = self.working
        mark = f"{self._read}-{len(self.rows)}-{working:d}"
        if self._shown[0] != mark:
            written = (self.run / METRICS).stat().st_mtime if self.rows else None
            self._shown = mark, live_page(self.name, self.rows, working, written)
        return self._shown


def _row(line: bytes) -> dict[str, Any] | None:
    """A row, or None for a line that a kill cut and for anything else that no run writes."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    sound = isinstance(row, dict) and isinstance(row.get("stage"), str) and isinstance(row.get("step"), int)
    return row if sound else None


def application(watched: Watched, key: str = "") -> Starlette:
    """What is served. With a key, every look at the run must bring it, and any Host may be named."""

    def show(request: Request) -> Response:
        if key and not secrets.compare_digest(request.query_params.get("key", "").encode(), key.encode()):
            return Response("The address needs the key that hornbook watch printed.", 401, HEADERS)
        mark, shown = watched.page()
        headers = {**HEADERS, "Mark": mark}
        if request.query_params.get("mark") == mark:
            return Response(status_code=204, headers=headers)
        return Response(shown, media_type="text/html", headers=headers)

    def script(request: Request) -> Response:
        return Response(ASK_AND_SWAP, media_type="text/javascript", headers=HEADERS)

    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["*"] if key else list(LOOPBACK), www_redirect=False)
    return Starlette(routes=[Route("/", show), Route(f"/{SCRIPT}", script)], middleware=[hosts])


# Asks every two seconds while the page is looked at. What a reader opened stays open, what is selected is not swapped away.
ASK_AND_SWAP = """
"use strict";
let mark = "", pointer = null;
const asked = new URLSearchParams(location.search);
function ages() {
  for (const at of document.querySelectorAll("[data-since]")) {
    const s = Math.max(0, Math.round(Date.now() / 1000 - Number(at.dataset.since)));
    at.textContent = s < 90 ? s + " s ago" : s < 5400 ? Math.round(s / 60) + " min ago" : Math.round(s / 3600) + " h ago";
  }
}
function swap(text) {
  const page = new DOMParser().parseFromString(text, "text/html");
  const named = s => s.textContent.replace(/[0-9]+/g, "");
  const open = [...document.querySelectorAll("details[open]>summary")].map(named);
  for (const s of page.querySelectorAll("details>summary")) s.parentNode.open = open.includes(named(s));
  const y = scrollY;
  document.body.replaceChildren(...page.body.childNodes);
  scrollTo(0, y);
  const step = document.querySelector("dl.tiles dd.value"), share = document.querySelector("table.bars tr:last-child data");
  document.title = [share && share.textContent, step && step.textContent, page.title].filter(Boolean).join(", ");
  read();
}
function value([low, high, start, end, log], at) {
  const share = (at - start) / (end - start);
  return log ? low * (high / low) ** share : low + share * (high - low);
}
function drawn(kind, svg, given, text) {
  const made = svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", kind));
  for (const name in given) made.setAttribute(name, given[name]);
  made.textContent = text || "";
  return made;
}
function read() {  // the figures of the place that is pointed at
  for (const old of document.querySelectorAll("svg .reading")) old.remove();
  const under = pointer && document.elementFromPoint(...pointer), svg = under && under.closest("svg[data-x]");
  if (!svg) return;
  const [across, down] = [svg.dataset.x, svg.dataset.y].map(axis => axis.split(" ").map(Number));
  const at = new DOMPoint(...pointer).matrixTransform(svg.getScreenCTM().inverse()).x;
  const near = (points, x) => points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
  const lines = [...svg.querySelectorAll("polyline")].map(
    line => [line, line.getAttribute("points").split(" ").map(point => point.split(",").map(Number))]);
  if (!lines.length) return;
  const x = near(lines.flatMap(line => line[1]), at)[0];
  drawn("line", svg, {class: "grid reading", x1: x, x2: x, y1: down[3], y2: down[2]});
  const said = drawn("text", svg, {class: "reading", x: svg.viewBox.baseVal.width - 2, y: 15, "text-anchor": "end"},
    "step " + Math.round(value(across, x)) + ":");
  for (const [line, points] of lines) {
    const point = near(points, x);
    const shown = Number(value(down, point[1]).toPrecision(3)).toLocaleString("en", {maximumSignificantDigits: 3});
    if (Math.abs(point[0] - x) < 1) drawn("tspan", said, {class: "name " + line.getAttribute("class")}, " " + shown);
  }
}
addEventListener("pointermove", event => { pointer = [event.clientX, event.clientY]; read(); });
async function ask() {
  if (!document.hidden && getSelection().isCollapsed) {
    let lost = "";
    try {
      asked.set("mark", mark);
      const answer = await fetch("/?" + asked);
      if (answer.status === 200) { mark = answer.headers.get("Mark"); swap(await answer.text()); }
      else if (answer.status !== 204) lost = "; hornbook watch answers " + answer.status;
    } catch { lost = "; hornbook watch does not answer: these are the last figures"; }
    document.getElementById("connection").textContent = lost;
  }
  ages();
  setTimeout(ask, 2000);
}
ask();
"""
