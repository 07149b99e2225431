# Sourced by demo.sh and test.sh: one virtual environment in the repository's root, with the extras named in $1.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}" PIP_DISABLE_PIP_VERSION_CHECK=1
PYTHON="${PYTHON:-python3}"
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv >&2
stamp=".venv/installed-$(cat setup.cfg pyproject.toml | cksum | cut -d' ' -f1)-${1//,/-}"
if [ ! -e "$stamp" ]; then
    echo "installing tokcli[$1] into .venv ..." >&2
    .venv/bin/python -m pip install --quiet --editable ".[$1]" >&2
    touch "$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
