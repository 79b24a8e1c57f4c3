#!/usr/bin/env bash
# torch 2.13.0: once a process has made an optimizer, Ctrl-C ends python in another way. Python lets
# a KeyboardInterrupt that nobody catches end it by SIGINT itself, so that a shell sees status 130 and
# stops the loop that the script runs in; afterwards it exits with status 1 instead. Seen:
#
#     without an optimizer: -2
#     after an optimizer: 1
#
# The first optimizer imports torch._dynamo, 0.8 s of work that `import torch` leaves out, and with it
# comes the change; importing torch._dynamo alone does the same. A job script that tells an
# interrupted training from a failed one by its status cannot rely on 130, and whoever wraps a
# training should raise SIGINT with its default handler at the end. Exits 0 if that still happens, 1
# if not.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy

cat > interrupted.py <<'END'
import os
import signal
import sys

import torch

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in the background
if sys.argv[1:] == ["optimizer"]:
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
os.kill(os.getpid(), signal.SIGINT)
END
cat > compare.py <<'END'
import subprocess
import sys

found = []
for name, arguments in {"without an optimizer": [], "after an optimizer": ["optimizer"]}.items():
    command = [sys.executable, "interrupted.py", *arguments]
    found.append(subprocess.run(command, stderr=subprocess.DEVNULL).returncode)
    print(f"{name}: {found[-1]}")
if found != [-2, 1]:
    sys.exit("changed: an optimizer leaves alone how python ends")
END
venv/bin/python compare.py
