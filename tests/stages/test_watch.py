"""`hornbook watch`: a file that grows, who may look, and what a browser shows of it."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from starlette.testclient import TestClient

from hornbook.cli.main import run as hornbook
from hornbook.files import append_line, held
from hornbook.model import TransformerModel
from hornbook.optim.build import build_optimizer
from hornbook.stages.keep import METRICS
from hornbook.stages.watch import Watched, application
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal_lm
from tests.reference.tiny import Given, random_batch, tiny_model

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = "http://127.0.0.1:8100"
PAYLOADS = [
    "<script>window.ran = 1</script>", "<img src=x onerror='window.ran = 1'>", "</pre><svg onload=window.ran=1>",
    "<iframe srcdoc='<script>parent.ran = 1</script>'>", '"><a href="javascript:window.ran=1" autofocus onfocus="window.ran=1">x',
]  # fmt: skip


def row(step: int, steps: int = 100, stage: str = "pretrain", **more: Any) -> dict[str, Any]:
    return {
        "stage": stage, "step": step, "steps": steps, "tokens": step * 512, "loss": 4 - step / 50, "bits_per_byte": 2 - step / 100,
        "learning_rate": 0.01, "grad_norm": 0.7, "tokens_per_second": 5120.0, "seconds": step / 10,
        "seconds_left": (steps - step) / 10, "data_wait": 0.015, "memory": 1_360_000_000, "flops_per_second": 4.2e11, "mfu": 0.379,
        **more,
    }  # fmt: skip


def write(run: Path, *rows: dict[str, Any]) -> None:
    run.mkdir(exist_ok=True)
    for each in rows:
        append_line(run / METRICS, each)


def client(run: Path, key: str = "") -> TestClient:
    return TestClient(application(Watched(run), key), base_url=HERE)


# --- a file that grows ------------------------------------------------------------------------------------------------------


def test_the_page_comes_anew_exactly_where_there_is_something_new(tmp_path: Path) -> None:
    browser = client(tmp_path / "run")
    first = browser.get("/")
    assert first.status_code == 200 and "No row has been written yet" in first.text
    assert browser.get("/", params={"mark": first.headers["mark"]}).status_code == 204
    write(tmp_path / "run", row(10))
    second = browser.get("/", params={"mark": first.headers["mark"]})
    assert second.status_code == 200 and "step 10" in second.text and second.headers["mark"] != first.headers["mark"]
    assert browser.get("/", params={"mark": second.headers["mark"]}).status_code == 204
    write(tmp_path / "run", row(20))
    assert "step 20" in browser.get("/", params={"mark": second.headers["mark"]}).text


def test_a_line_counts_when_it_is_whole(tmp_path: Path) -> None:
    watched, line = Watched(tmp_path), json.dumps(row(10, note="角帖")).encode() + b"\n"
    for cut in range(0, len(line), 7):
        (tmp_path / METRICS).write_bytes(line[:cut])
        watched.look()
        assert watched.rows == []
    (tmp_path / METRICS).write_bytes(line)
    watched.look()
    assert [each["step"] for each in watched.rows] == [10]


def test_reading_in_pieces_is_reading_at_once_and_a_new_file_is_read_anew(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    for step in range(1, 30):
        write(tmp_path, row(step))
        if step % 4 == 0:
            watched.look()
    watched.look()
    once = Watched(tmp_path)
    once.look()
    assert watched.rows == once.rows and len(once.rows) == 29
    (tmp_path / METRICS).unlink()
    write(tmp_path, row(5))
    watched.look()
    assert [each["step"] for each in watched.rows] == [5]


def test_what_no_run_writes_is_passed_over(tmp_path: Path) -> None:
    lines = [b"[]", b"7", b"{", b"\xff\xfe", b"", b'{"step": 3}', b'{"stage": 1, "step": 2}', json.dumps(row(4)).encode()]
    (tmp_path / METRICS).write_bytes(b"\n".join(lines) + b"\n")
    page = client(tmp_path).get("/")
    assert page.status_code == 200 and "step 4" in page.text


def test_it_sees_every_row_of_a_run_that_trains(tmp_path: Path) -> None:
    """The trainer's own hook looks at the page after each step."""
    browser, model, seen = client(tmp_path / "run"), tiny_model(dtype=torch.float32), list[bool]()

    def look(step: int, model: TransformerModel) -> dict[str, float]:
        seen.append(f"step {step}<" in browser.get("/").text)
        return {"held_out_loss": 3.0}

    with held(tmp_path / "run"):
        run = Run(steps=4, log_every=1, hook_every=1, log=lambda each: write(tmp_path / "run", each), peak=1e9)
        batches = Given([random_batch(2, 6, seed) for seed in range(4)])
        fit(model, batches, causal_lm, build_optimizer(model, "adamw", 0.01), lambda step: 1.0, run, [look])
        page = browser.get("/").text
    assert seen == [True] * 4
    for shown in ("held out 3", "Use of the device (MFU)", "Peak memory", "Waiting for data", "A process is at work"):
        assert shown in page


# --- the state of a run -----------------------------------------------------------------------------------------------------


def test_a_run_waits_trains_stops_and_finishes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def state() -> Any:
        assert hornbook(["watch", str(tmp_path / "run"), "--json"]) == 0
        return json.loads(capsys.readouterr().out)["state"]

    assert state() == "waiting"
    with held(tmp_path / "run"):
        assert state() == "waiting"
        write(tmp_path / "run", row(10))
        assert state() == "training"
    (tmp_path / "run" / ".lock").write_text(str(gone()))
    assert state() == "stopped"
    write(tmp_path / "run", row(100))
    assert state() == "finished"
    for lock in ("", "x", "-1", "0", "9" * 40):
        (tmp_path / "run" / ".lock").write_text(lock)
        assert state() == "finished"


def gone() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_looking_does_not_take_the_folder_from_a_run(tmp_path: Path) -> None:
    with held(tmp_path):
        pass
    Watched(tmp_path).newest()
    with held(tmp_path):
        assert Watched(tmp_path).working


def test_the_newest_figures_are_those_of_the_stage_that_wrote_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    looks = {"stage": "sft", "step": 5, "held_out_loss": 1.5}
    left_out = {"stage": "sft", "step": 7, "left_out": "the loss is nan"}
    write(tmp_path, row(100), row(5, 20, "sft", right=0.5), looks, row(6, 20, "sft"), left_out)
    assert hornbook(["watch", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["stage"], found["loss"], found["right"], found["held_out_loss"]) == ("sft", 4 - 6 / 50, 0.5, 1.5)
    assert found["steps_left_out"] == 1
    page = client(tmp_path).get("/").text
    for shown in ("Pretraining", "Fine-tuning", "Steps left out", "the loss is nan", "1.36 GB", "37.9 %", "420 G FLOP/s"):
        assert shown in page
    assert "right by step" in page  # an objective's own figure has a chart


# --- who may look -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8100", "127.0.0.1.evil.example", "localhost.evil.example", ""])
def test_a_page_of_another_site_cannot_read_along(tmp_path: Path, host: str) -> None:
    write(tmp_path, row(10))
    for path in ("/", "/watch.js"):
        answer = client(tmp_path).get(path, headers={"host": host})
        assert answer.status_code == 400 and "step" not in answer.text
    assert client(tmp_path).get("/", headers={"host": "localhost:9"}).status_code == 200


def test_nothing_but_the_page_and_its_script_is_there(tmp_path: Path) -> None:
    write(tmp_path / "run", row(10))
    (tmp_path / "secret").write_text("s3cret")
    browser = client(tmp_path / "run")
    paths = ["/secret", "/../secret", "/%2e%2e/secret", "/..%2fsecret", "//etc/passwd", "/metrics.jsonl", "/watch.js/../../secret"]
    answers = [browser.get(path) for path in paths]
    assert [answer.status_code for answer in answers] == [404] * len(paths)
    answers += [browser.get(path) for path in ("/?mark=../secret", "/watch.js?file=../secret")]
    assert not any("s3cret" in answer.text for answer in answers)
    assert {browser.request(method, "/").status_code for method in ("POST", "PUT", "DELETE", "OPTIONS")} == {405}


def test_elsewhere_it_needs_its_key(tmp_path: Path) -> None:
    write(tmp_path, row(10))
    browser = client(tmp_path, key="kéy")
    for given in ("", "?key=", "?key=wrong", "?key=k%FF"):
        assert browser.get("/" + given).status_code == 401
    assert browser.get("/", params={"key": "kéy"}).status_code == 200


def test_a_browser_is_told_to_load_and_run_nothing_else(tmp_path: Path) -> None:
    headers = client(tmp_path).get("/").headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'" and headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


# --- the command ------------------------------------------------------------------------------------------------------------


def test_a_taken_port_and_a_file_in_the_place_of_a_run_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert hornbook(["watch", str(tmp_path), "--port", str(taken.getsockname()[1])]) == 2
    assert "--port 0" in capsys.readouterr().err
    assert hornbook(["watch", str(tmp_path), "--host", "no.such.host.invalid"]) == 2
    (tmp_path / "file").write_text("")
    assert hornbook(["watch", str(tmp_path / "file")]) == 2


def test_the_command_serves_until_it_is_stopped_and_needs_no_torch(tmp_path: Path) -> None:
    write(tmp_path, row(10))
    script = "import sys; from hornbook.cli.main import run; sys.exit(run(sys.argv[1:]) + 10 * ('torch' in sys.modules))"
    command = [sys.executable, "-c", script, "watch", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as served:
        assert served.stdout and served.stderr
        address = served.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert b"step 10" in answer.read()
        served.send_signal(signal.SIGINT)
        assert served.wait(20) == 0 and served.stderr.read() == ""


# --- the browser ------------------------------------------------------------------------------------------------------------


@contextmanager
def serving(run: Path) -> Iterator[str]:
    """The address of a server in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        server = uvicorn.Server(uvicorn.Config(application(Watched(run)), log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        yield f"http://127.0.0.1:{door.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


def told(step: int, texts: list[str]) -> dict[str, Any]:
    return {"stage": "pretrain", "step": step, "samples": [{"prompt": text, "text": text} for text in texts]}


def test_a_browser_follows_a_run(tmp_path: Path) -> None:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on PATH")
    sync = pytest.importorskip("playwright.sync_api")
    run, said, asked, grounds = tmp_path / "run", list[str](), list[str](), set[str]()
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        with serving(run) as address:
            view = browser.new_page(viewport={"width": 1280, "height": 900})
            view.on("console", lambda message: said.append(message.text))
            view.on("pageerror", lambda error: said.append(str(error)))
            view.on("request", lambda request: asked.append(request.url))
            view.goto(address)
            view.get_by_text("No row has been written yet").wait_for()
            write(run, *(row(step) for step in range(10, 50, 10)), told(40, PAYLOADS + ["a", "b"]))
            view.get_by_text("step 40", exact=True).wait_for()
            assert view.title().startswith("40.0 %, step 40")
            view.get_by_text("All 7 samples").click()
            write(run, row(50), {"stage": "pretrain", "step": 51, "left_out": "the loss is nan"}, told(50, PAYLOADS))
            view.get_by_text("step 50", exact=True).wait_for()
            view.get_by_text("the loss is nan").wait_for()
            assert view.get_by_text("All 12 samples").evaluate("s => s.parentNode.open")
            view.get_by_text("s ago").first.wait_for()
            assert view.evaluate("window.ran") is None and said == []
            assert [url for url in asked if not url.startswith((address, "data:"))] == []
            chart = view.locator("svg.wide").first
            chart.scroll_into_view_if_needed()
            dot = chart.locator("circle").nth(2).bounding_box()
            assert dot is not None
            view.mouse.move(dot["x"] + dot["width"] / 2, dot["y"] + 20)
            assert chart.locator("text.reading").text_content() == "step 30: 3.4"
            for scheme, width in (("light", 390), ("dark", 1280), ("light", 1280)):
                view.emulate_media(color_scheme=scheme)
                view.set_viewport_size({"width": width, "height": 900})
                assert view.evaluate("document.documentElement.scrollWidth") <= width
                grounds.add(view.evaluate("getComputedStyle(document.body).backgroundColor"))
                small = view.evaluate("[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)")
                assert min(small) >= 10
        view.get_by_text("does not answer").wait_for()
        browser.close()
    assert len(grounds) == 2


def test_what_a_reader_opened_and_where_they_are_stays(tmp_path: Path) -> None:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no Chromium on PATH")
    sync = pytest.importorskip("playwright.sync_api")
    write(tmp_path, *(row(step) for step in range(1, 20)), told(19, [f"sample {i}" for i in range(9)]))
    with sync.sync_playwright() as playwright, serving(tmp_path) as address:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1280, "height": 700})
        view.goto(address)
        view.get_by_text("All 9 samples").click()
        view.evaluate("scrollTo(0, 900)")
        write(tmp_path, row(20))
        view.get_by_text("step 20", exact=True).wait_for()
        assert view.evaluate("document.querySelector('details').open") and abs(view.evaluate("scrollY") - 900) < 2
        browser.close()
