"""`python -m rayreid.cli`."""

from rayreid.cli import main

main()
