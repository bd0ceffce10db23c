"""Run ``fractatlas train`` from a checkout: ``python train.py KEY=VALUE ...``."""

from fractatlas.cli.main import main

if __name__ == "__main__":
    main("train")
