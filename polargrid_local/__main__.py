"""`python -m polargrid_local`, where the installed command is not on the PATH."""

from .cli import main

main()
