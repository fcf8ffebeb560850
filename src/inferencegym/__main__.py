"""`python -m inferencegym` does the same as the command `inferencegym`, also where that is not on the path."""

from inferencegym.cli.main import main

if __name__ == "__main__":
    main()
