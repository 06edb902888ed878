"""``python -m diptych`` is the command ``diptych``."""

import sys

from diptych.cli import main

sys.exit(main())
