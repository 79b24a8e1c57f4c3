#!/usr/bin/env bash
# mlflow 3.7.0 declares sqlalchemy<3, so pip gives it SQLAlchemy 2.1.9; but a sqlite store does not
# open there, because it imports a pool that SQLAlchemy 2.1 has removed. Seen:
#
#     ImportError: cannot import name 'FallbackAsyncAdaptedQueuePool' from 'sqlalchemy.pool'
#
# The same mlflow works with SQLAlchemy 2.0.58, and mlflow 3.9.0 works with 2.1.9.
#
# Exits 0 if that is still so, 1 if not.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export GIT_PYTHON_REFRESH=quiet MLFLOW_DISABLE_TELEMETRY=true

cat > start.py <<'END'
import mlflow
import sqlalchemy

mlflow.set_tracking_uri("sqlite:///runs.db")
mlflow.set_experiment("any")
with mlflow.start_run():
    mlflow.log_metric("loss", 0.5)
print("logged with mlflow", mlflow.__version__, "and SQLAlchemy", sqlalchemy.__version__)
END

# try MLFLOW SQLALCHEMY: whether a run can be logged with these versions
try() {
    rm -rf venv runs.db mlruns
    python3 -m venv venv
    venv/bin/pip install --quiet "mlflow==$1" "sqlalchemy==$2"
    echo "mlflow $1, SQLAlchemy $2:"
    venv/bin/python -W ignore start.py 2>&1 | tail -n 1
    return "${PIPESTATUS[0]}"
}

failed=0
if try 3.7.0 2.1.9; then echo "it works now"; failed=1; fi
try 3.7.0 2.0.58 || failed=1
try 3.9.0 2.1.9 || failed=1
exit $failed
