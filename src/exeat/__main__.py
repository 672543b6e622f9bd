"""`python -m exeat` is the command line."""

from exeat.appliance.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
