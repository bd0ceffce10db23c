"""Run ``fractatlas evaluate`` from a checkout: ``python evaluate.py KEY=VALUE ...``."""

from fractatlas.cli.main import main

if __name__ == "__main__":
    main("evaluate")
