"""`python -m zipage` is the `zipage` command."""

import sys

from zipage.cli import main

if __name__ == "__main__":
    sys.exit(main())
