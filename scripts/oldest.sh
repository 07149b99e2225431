#!/usr/bin/env bash
# The fast tests with the oldest release of every requirement that setup.cfg allows, in an environment of its own. Arguments go to pytest.
# Those releases have wheels for Python 3.10 to 3.12: python3.10 is taken where there is one, PYTHON=... chooses another.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" PIP_DISABLE_PIP_VERSION_CHECK=1
environment=.venv-oldest
if [ ! -x "$environment/bin/python" ]; then
    for candidate in "${PYTHON:-python3.10}" python3; do
        if "$candidate" -c "import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))" 2>/dev/null; then break; fi
        candidate=""
    done
    [ -n "$candidate" ] || { echo "scripts/oldest.sh: needs Python 3.10 to 3.12. Give one: PYTHON=/path/to/python3.10" >&2; exit 1; }
    "$candidate" -m venv "$environment" >&2
fi
python="$environment/bin/python"
"$python" - >"$environment/oldest.txt" <<'END'
import configparser

setup = configparser.ConfigParser()
setup.read("setup.cfg")
lists = [setup["options"]["install_requires"], *(setup["options.extras_require"][name] for name in ("demo", "dev", "fast"))]
for line in sorted({line for text in lists for line in text.splitlines() if ">=" in line}):
    name, bound = (part.strip() for part in line.split(">="))
    print(f"{name}=={bound}")
END
stamp="$environment/installed-$(cat setup.cfg pyproject.toml | cksum | cut -d' ' -f1)"
if [ ! -e "$stamp" ]; then
    echo "installing the oldest requirements into $environment (about 3 GB) ..." >&2
    "$python" -m pip install --quiet --constraint "$environment/oldest.txt" --editable ".[demo,dev,fast]" >&2
    touch "$stamp"
fi
export PATH="$PWD/$environment/bin:$PATH"
python -m pytest -q -m "not slow" "$@"
