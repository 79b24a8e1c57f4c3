#!/usr/bin/env bash
# torch 2.13.0 beside tabulate: once a process has made an optimizer, Ctrl-C ends python in another
# way. Python lets a KeyboardInterrupt that nobody catches end it by SIGINT itself, so that a shell
# sees status 130 and stops the loop that the script runs in; afterwards it exits with status 1
# instead. Seen:
#
#     without an optimizer: -2
#     after an optimizer, without tabulate: -2
#     after an optimizer: 1
#
# The first optimizer imports torch._dynamo, which registers a function for the end of the process.
# That imports tabulate, where it is installed (skorch brings it, and sbi brings skorch), and the
# import makes Python forget that the process was interrupted. A job script that tells an interrupted
# training from a failed one by its status cannot rely on 130, and whoever wraps a training should
# raise SIGINT with its default handler at the end. Exits 0 if that still happens, 1 if not.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6 tabulate==0.10.0

cat > interrupted.py <<'END'
import os
import signal
import sys

import torch

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in the background
if "untabulated" in sys.argv:
    sys.modules["tabulate"] = None  # as if it were not installed
if "optimizer" in sys.argv:
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
os.kill(os.getpid(), signal.SIGINT)
END
cat > compare.py <<'END'
import subprocess
import sys

ways = {
    "without an optimizer": [],
    "after an optimizer, without tabulate": ["optimizer", "untabulated"],
    "after an optimizer": ["optimizer"],
}
found = []
for name, arguments in ways.items():
    command = [sys.executable, "interrupted.py", *arguments]
    found.append(subprocess.run(command, stderr=subprocess.DEVNULL).returncode)
    print(f"{name}: {found[-1]}")
if found != [-2, -2, 1]:
    sys.exit("changed: an optimizer leaves alone how python ends")
END
venv/bin/python compare.py
