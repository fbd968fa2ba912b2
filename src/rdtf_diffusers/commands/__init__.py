"""What the commands of `rdtf-diffusers` do; `cli.py` reads their arguments."""
