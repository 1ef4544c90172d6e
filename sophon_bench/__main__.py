"""``python -m sophon_bench``."""

from sophon_bench.cli import main

if __name__ == "__main__":
    main(prog_name="sophon-bench")
