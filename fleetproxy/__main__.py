"""`python -m fleetproxy`, for where the script is not on the path."""

import sys

from fleetproxy.cli import main

sys.exit(main())
