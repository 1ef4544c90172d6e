"""``python -m sophon_bench.cli``."""

from sophon_bench.cli import main

if __name__ == "__main__":
    main()
