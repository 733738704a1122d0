# SPDX-License-Identifier: Apache-2.0
"""`python3 -m slim_router` is slim-router."""

import sys

from .cli import main

sys.exit(main())
