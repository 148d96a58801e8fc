"""For `python -m asddim_lib.cli`, which torchrun and accelerate launch need."""

from asddim_lib.cli import main

main()
