"""python -m advcam_fast VERB."""

from advcam_fast.cli import main

main()
