#!/bin/sh
# Install fractatlas, and the extras that a server needs, into the Python environment that `python` starts.
# The versions are those of requirements.txt. Run it in the folder that contains pyproject.toml.
# usage: docker/install.sh [BACKEND], uv's name of a build of PyTorch: cpu, cu130, auto; without it, the registry's build
set -eu
backend=${1:-}
python -m pip install --quiet --disable-pip-version-check uv==0.13.9
# Constraints have no hashes: the CPU build of PyTorch has another one than the build in requirements.txt.
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
sed -e '/^ *#/d' -e '/^ *--hash/d' -e 's/ *\\$//' requirements.txt >"$constraints"
python -m uv pip install --quiet --python "$(command -v python)" --constraint "$constraints" \
	${backend:+"--torch-backend=$backend"} '.[serve,dicom,export]'
fractatlas --version
