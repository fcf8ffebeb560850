"""`python -m inferencegym` is the command `inferencegym`."""

from inferencegym.cli.main import main

if __name__ == "__main__":
    main()
