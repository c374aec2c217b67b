"""`python -m capreward.cli`."""

import sys

from capreward.cli import main

if __name__ == "__main__":
    sys.exit(main())
