# Sourced by the scripts for GPUs: PYTHON, and `import longreel` also where only a checkout is there.
PYTHON="${PYTHON:-.venv/bin/python}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
if ! "$PYTHON" -P -c "import longreel" 2>/dev/null; then
    ln -s "$PWD/longreel" "$scratch/longreel" # not installed here: the checkout itself
    export PYTHONPATH="$scratch${PYTHONPATH:+:$PYTHONPATH}"
fi
