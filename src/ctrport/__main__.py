"""`python -m ctrport`."""

from ctrport.cli import program

if __name__ == "__main__":
    program()
