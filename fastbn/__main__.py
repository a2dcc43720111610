"""``python -m fastbn``."""

import sys

from fastbn.cli.main import main

sys.exit(main())
