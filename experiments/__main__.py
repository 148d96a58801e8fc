"""`python -m experiments`, which torchrun and accelerate launch need too."""

from experiments.cli import main

main()
