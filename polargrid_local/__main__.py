"""`python -m polargrid_local`, where the installed command is not on the PATH."""

from polargrid_local.cli.main import main

main()
