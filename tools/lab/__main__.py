# SPDX-License-Identifier: Apache-2.0
"""`python -m lab`: see tools/slimlab."""

import sys

from lab.cli import main

sys.exit(main())
