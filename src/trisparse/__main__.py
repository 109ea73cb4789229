"""`python -m trisparse`"""

from trisparse.cli.main import run

run()
