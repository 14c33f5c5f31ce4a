"""Makes the lock files: every version with its hashes, for Python 3.11 to 3.13 on every platform."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parent / "pyproject.toml"
COMMON = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--quiet"]
LOCKS = {
    "runtime.txt": [str(PROJECT)],
    "dev.txt": [str(PROJECT), "--extra", "local", "--extra", "ray", "--group", f"{PROJECT}:dev"],
    "installer.txt": [str(HERE / "installer.in")],
    "build.txt": [str(HERE / "build.in")],
}


def main() -> None:
    """Resolve anew; `--upgrade` as an argument takes newer versions than those locked."""
    for name, sources in LOCKS.items():
        subprocess.run(
            ["uv", "pip", "compile", *sources, *COMMON, "--output-file", str(HERE / name), *sys.argv[1:]],
            check=True,
            stdout=subprocess.DEVNULL,
        )


if __name__ == "__main__":
    main()
