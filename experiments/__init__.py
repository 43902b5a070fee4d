"""Scripts a person runs: `python -m experiments.NAME`, each with `--help`."""
