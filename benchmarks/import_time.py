"""How long `import hrda_lib` takes once torch is loaded: median and spread over fresh processes, in milliseconds."""

import statistics
import subprocess
import sys

CODE = "import time, torch; start = time.perf_counter(); import hrda_lib; print(1000 * (time.perf_counter() - start))"


def main(runs: int = 15) -> None:
    for _ in range(2):  # the first runs write bytecode and fill the disk cache
        subprocess.run([sys.executable, "-c", CODE], check=True, stdout=subprocess.DEVNULL)
    times = [float(subprocess.check_output([sys.executable, "-c", CODE])) for _ in range(runs)]
    low, middle, high = min(times), statistics.median(times), max(times)
    print(f"import hrda_lib after torch, {runs} processes: median {middle:.1f} ms, from {low:.1f} to {high:.1f} ms")


if __name__ == "__main__":
    main()
