"""`python -m tests.kernels.gates [FILE]`: print the table of kernels, or write it to FILE."""

import sys
from pathlib import Path

from tests.kernels.gates.table import page

if len(sys.argv) > 1:
    Path(sys.argv[1]).write_text(page())
else:
    print(page())
