"""Every benchmark, one after the other; each also runs alone and says what it compares (--help)."""

import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Exit status 1 when any benchmark failed to run; numbers are printed, not judged."""
    failed = []
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.name == Path(__file__).name:
            continue
        sys.stdout.write(f"\n=== {path.stem}\n")
        sys.stdout.flush()
        if subprocess.run([sys.executable, str(path)]).returncode:
            failed.append(path.stem)
    if failed:
        sys.stdout.write(f"\nfailed to run: {', '.join(failed)}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
