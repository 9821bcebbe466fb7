"""`python -m firered_lit VERB`."""

import sys

from firered_lit.cli import main

if __name__ == "__main__":
    sys.exit(main())
