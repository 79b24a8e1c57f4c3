#!/usr/bin/env bash
# TensorBoard 2.21.0 with --load_fast=false ignores the first restart mark of a run.
#
# A training logs epochs 1 to 5, crashes, and is resumed after epoch 3 with the documented
# SummaryWriter(purge_step=4). TensorBoard's data server (the default) shows every epoch once. The
# reader in Python, which is what runs where there is no data server, takes the first
# SessionLog.START of a run for its start and purges nothing: epochs 4 and 5 show twice, the lost
# ones included. A purge_step in the very first event file, too, makes it obey.
#
# Seen: resumed          true: 1 2 3 4 5 6            false: 1 2 3 4 5 4 5 6
#       with first mark  true: 1 2 3 4 5 6            false: 1 2 3 4 5 6
# Exits with another code than 0 if that is no longer what happens.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet \
    tensorboard==2.21.0 tensorboard-data-server==0.7.2 tensorboardX==2.6.4 "setuptools<81"

cat > "$folder/show.py" <<'PYTHON'
import json, os, signal, socket, subprocess, sys, time, urllib.request
from tensorboardX import SummaryWriter

place = sys.argv[1]


def log(run, steps, **purge):
    with SummaryWriter(os.path.join(place, run), **purge) as writer:
        for step in steps:
            writer.add_scalar("loss", 1.0 / step, step)


for run, first in (("resumed", {}), ("with first mark", {"purge_step": 0})):
    log(run, range(1, 6), **first)
    time.sleep(1.1)  # the names of event files count seconds
    log(run, range(4, 7), purge_step=4)


def shown(load_fast):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", place, "--port", str(port)]
    command += ["--host", "127.0.0.1", f"--load_fast={load_fast}"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    steps = {}
    try:
        for _ in range(120):
            time.sleep(0.5)
            for run in ("resumed", "with first mark"):
                query = f"data/plugin/scalars/scalars?run={run.replace(' ', '%20')}&tag=loss"
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{query}") as answer:
                        steps[run] = [point[1] for point in json.load(answer)]
                except OSError:
                    continue
            if len(steps) == 2 and all(found and found[-1] == 6 for found in steps.values()):
                return steps
        raise SystemExit(f"the server showed {steps} only")
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


once, twice = [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 4, 5, 6]
seen = {load_fast: shown(load_fast) for load_fast in ("true", "false")}
for load_fast, steps in seen.items():
    print(f"--load_fast={load_fast}: {steps}")
assert seen["true"] == {"resumed": once, "with first mark": once}, "the data server changed"
assert seen["false"] == {"resumed": twice, "with first mark": once}, "the reader changed"
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/show.py" "$folder/logs"
