#!/usr/bin/env bash
# pytorch-ignite 0.5.5: an Engine whose run ended with an exception does nothing in its next run().
# It raises nothing, fires no event and returns None; only the run after that runs again. Seen:
#
#     second run: returned None, batches seen []
#     third run: returned (iteration, epoch) (3, 1), batches seen [1, 2, 3]
#     second run without interrupt_resume_enabled: returned (3, 1), batches seen [1, 2, 3]
#
# Whoever catches an error and calls run() again, say to validate once more, gets the metrics of the
# run that failed. A new Engine helps, or `engine.interrupt_resume_enabled = False` before the first
# run. Exits 0 if that still happens, 1 if not.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy pytorch-ignite==0.5.5

cat > again.py <<'END'
import sys

from ignite.engine import Engine


def runs(resumable: bool) -> list[tuple[object, list[int]]]:
    """Return what a second and a third run return, and the batches that they see."""
    fails, seen = [True], []

    def step(engine: Engine, batch: int) -> None:
        if fails[0]:
            raise ValueError("the first batch of the first run")
        seen.append(batch)

    engine, results = Engine(step), []
    engine.interrupt_resume_enabled = resumable
    engine.logger.disabled = True
    try:
        engine.run([1, 2, 3], max_epochs=1)
    except ValueError:
        fails[0] = False
    for _ in range(2):
        state = engine.run([1, 2, 3], max_epochs=1)
        results.append((state and (state.iteration, state.epoch), seen.copy()))
    return results


(second, seen), (third, seen_then) = runs(resumable=True)
print(f"second run: returned {second}, batches seen {seen}")
print(f"third run: returned (iteration, epoch) {third}, batches seen {seen_then}")
((other, seen_otherwise), _) = runs(resumable=False)
print(f"second run without interrupt_resume_enabled: returned {other}, batches seen {seen_otherwise}")
if second is not None or seen or other is None:
    sys.exit("changed: an Engine runs again after an error")
END
venv/bin/python again.py
