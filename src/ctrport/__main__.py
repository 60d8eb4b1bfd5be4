"""`python -m ctrport`."""

from ctrport.cli import main

if __name__ == "__main__":
    main()
