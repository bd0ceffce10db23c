"""Run ``fractatlas predict`` from a checkout: ``python predict.py KEY=VALUE ...``."""

from fractatlas.cli.main import main

if __name__ == "__main__":
    main("predict")
