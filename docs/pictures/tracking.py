"""Make `tracking.png`: what stdout, TensorBoard, MLflow and wandb show of one training.

    pip install "sbi-ignite[all]" websocket-client       # and a chromium on the PATH
    python docs/pictures/tracking.py

The pages of TensorBoard and MLflow are photographed in a headless browser. wandb shows offline runs
nowhere, so its corner holds what is in the run's file: a row of its table, and the figure.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from sbi.utils import BoxUniform

from sbi_ignite import NPE, EarlyStopping, LoggingConfig, TrainConfig

PICTURE = Path(__file__).with_suffix(".png")
CORNER = (1000, 560)
RATES = (5e-4, 2e-3)
LAST = f"rate-{RATES[-1]:g}"


def main() -> None:
    """Train, photograph, put together."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        lines = train()
        address = "127.0.0.1"
        with (
            serving("mlflow", "ui", "--backend-store-uri", "sqlite:///mlflow.db") as mlflow,
            serving("tensorboard.main", "--logdir", "tb") as board,
            browser() as photograph,
        ):
            run = (
                f"http://{address}:{mlflow}/#/experiments/1/runs/{mlflow_run(mlflow)}/model-metrics"
            )
            corners = {
                'LoggingConfig("stdout")': text([*lines[:3], "  ...", *lines[-12:]]),
                'LoggingConfig("tensorboard")': photograph(f"http://{address}:{board}/#timeseries"),
                'LoggingConfig("mlflow")': photograph(run, 1.7),
                'LoggingConfig("wandb", mode="offline")': wandb_corner(),
            }
    put_together(corners).quantize(128).save(PICTURE, optimize=True)


def train() -> list[str]:
    """Train with two learning rates and return what the second printed."""
    torch.manual_seed(0)
    prior = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
    theta = prior.sample((1000,))
    x = theta + 0.3 * torch.randn_like(theta)
    lines: list[str] = []
    for rate in RATES:
        name = f"rate-{rate:g}"
        with contextlib.redirect_stdout(printed := io.StringIO()):
            NPE(prior, show_progress_bars=False).append_simulations(theta, x).train(
                TrainConfig(max_epochs=40, learning_rate=rate, seed=0),
                logging=[
                    LoggingConfig("stdout", run_name=name),
                    LoggingConfig("tensorboard", log_dir="tb", run_name=name),
                    LoggingConfig(
                        "mlflow",
                        tracking_uri="sqlite:///mlflow.db",
                        run_name=name,
                        experiment_name="sbi",
                    ),
                    LoggingConfig("wandb", mode="offline", project="sbi", run_name=name),
                ],
                early_stopping=EarlyStopping.validation_loss(patience=5),
            )
        lines = printed.getvalue().splitlines()
        time.sleep(20)  # on a busy machine the rest is delivered in the background
    return lines


# --- servers and the browser


@contextmanager
def serving(module: str, *arguments: str) -> Iterator[int]:
    """Start `python -m module` on a free port, give the port, and end it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments, "--port", str(port)],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        start_new_session=True,
        **quiet,
    )
    try:
        answer(f"http://127.0.0.1:{port}/")
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answer(url: str) -> bytes:
    """Return what a server answers, once it does."""
    for _ in range(300):
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                return response.read()
        except OSError:
            time.sleep(0.3)
    raise TimeoutError(url)


def mlflow_run(port: int) -> str:
    """Return the id of the last run."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/search",
        json.dumps({"experiment_ids": ["1"]}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        runs = json.load(response)["runs"]
    return next(run["info"]["run_id"] for run in runs if run["info"]["run_name"] == LAST)


@contextmanager
def browser() -> Iterator[Callable[..., Image.Image]]:
    """Give a function that photographs a page, through Chromium's DevTools protocol."""
    from websocket import create_connection

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            *("chromium", "--headless", "--no-sandbox", "--hide-scrollbars"),
            *(
                "--use-angle=swiftshader",
                "--enable-unsafe-swiftshader",
                f"--user-data-dir={profile}",
            ),
            *(f"--remote-debugging-port={port}", "--remote-allow-origins=*", "about:blank"),
        ]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            pages = json.loads(answer(f"http://127.0.0.1:{port}/json"))
            page = next(page for page in pages if page["type"] == "page")
            channel = create_connection(page["webSocketDebuggerUrl"], timeout=60)

            def call(method: str, **parameters: Any) -> dict[str, Any]:
                channel.send(json.dumps({"id": 1, "method": method, "params": parameters}))
                while (message := json.loads(channel.recv())).get("id") != 1:
                    continue
                return message["result"]

            def photograph(url: str, scale: float = 1.25) -> Image.Image:
                width, height = (int(scale * side) for side in CORNER)
                call(
                    "Emulation.setDeviceMetricsOverride",
                    width=width,
                    height=height,
                    deviceScaleFactor=1,
                    mobile=False,
                )
                call("Page.navigate", url=url)
                time.sleep(25)  # pages go on to load and draw after they are there
                data = call("Page.captureScreenshot", format="png")["data"]
                return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")

            yield photograph
        finally:
            process.kill()
            process.wait()


# --- pictures


def wandb_corner() -> Image.Image:
    """Return a row of wandb's table as its file holds it, beside the figure that it gets."""
    from sbi_ignite.loggers.wandb import logged_rows

    (folder,) = sorted(Path("wandb").glob("offline-run-*"))[-1:]
    (file,) = folder.glob("*.wandb")
    last = [row for row in logged_rows(file) if "training_loss" in row][-1]
    lines = [file.name, "", f"the last of {last['epoch']} rows of its history:", ""]
    lines += [f"  {name:<22} {value:.6g}" for name, value in last.items() if name[0] != "_"]
    picture = text([*lines, "", "and the figure:"], width=0.5)
    (figure,) = folder.glob("files/media/images/loss_curve*.png")
    curve = Image.open(figure).convert("RGB")
    curve.thumbnail((CORNER[0] // 2 + 40, CORNER[1]))
    picture.paste(curve, (CORNER[0] - curve.width, (CORNER[1] - curve.height) // 2))
    return picture


def text(lines: list[str], width: float = 1.0) -> Image.Image:
    """Return lines as they stand in a terminal."""
    picture = Image.new("RGB", CORNER, "white")
    columns = int(width * 105)
    wrapped = [
        part
        for line in lines
        for part in (textwrap.wrap(line, columns, drop_whitespace=False) or [""])
    ]
    ImageDraw.Draw(picture).text(
        (12, 12), "\n".join(wrapped), "black", font("DejaVu Sans Mono", 15), spacing=9
    )
    return picture


def font(name: str, size: int) -> Any:
    """Return a font that comes with matplotlib."""
    return ImageFont.truetype(findfont(name), size)


def put_together(corners: dict[str, Image.Image]) -> Image.Image:
    """Return the corners, two by two, each under its title."""
    width, height, title, gap = *CORNER, 36, 14
    whole = Image.new("RGB", (2 * width + 3 * gap, 2 * (height + title) + 3 * gap), "#d8dee6")
    pen = ImageDraw.Draw(whole)
    for number, (name, corner) in enumerate(corners.items()):
        x = gap + number % 2 * (width + gap)
        y = gap + number // 2 * (height + title + gap)
        pen.text((x + 4, y + 5), name, "black", font("DejaVu Sans Mono", 20))
        whole.paste(corner.resize(CORNER, Image.Resampling.LANCZOS), (x, y + title))
    return whole


if __name__ == "__main__":
    main()
