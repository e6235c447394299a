"""`python -m hornbook` and `torchrun -m hornbook`: the command line, where no script of that name is on the path."""

from hornbook.cli.main import main

if __name__ == "__main__":
    main()
