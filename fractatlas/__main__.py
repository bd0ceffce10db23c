"""Run the ``fractatlas`` command as ``python -m fractatlas``."""

from fractatlas.cli.main import main

if __name__ == "__main__":
    main()
