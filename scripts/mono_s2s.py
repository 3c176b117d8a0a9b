"""The program behind the shell commands of the checkout: mono_s2s.py COMMAND [OPTIONS]. Needs Python 3.10 alone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    sys.dont_write_bytecode = True  # looking at things leaves no trace in the checkout
    from utils.commands.program import main

    sys.exit(main(sys.argv[1:]))
