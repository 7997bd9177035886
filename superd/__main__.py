"""`python -m superd` is the `superd` command."""

import sys

from superd.cli import main

sys.exit(main())
