"""``python -m tokendetr``: the console script."""

from tokendetr.cli.main import main

if __name__ == "__main__":
    main()
