"""What a GPU should show, in one command and one file: `python -m benchmarks --only gpu`.

Without a GPU the same command runs with a small network and small images, and says so in the first
line of its file. `docs/gpu.md` tells how to run it and shows what was found.
"""
