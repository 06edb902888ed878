"""``python -m diptych`` is the command ``diptych``."""

import sys

from diptych.cli.main import main

sys.exit(main())
