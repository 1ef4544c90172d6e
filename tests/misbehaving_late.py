"""Changes what libraries do when they are imported."""

import logging
import os
import warnings

os.environ["MISBEHAVING_LATE"] = "1"
warnings.filterwarnings("ignore", message="late")
logging.getLogger("misbehaving_late").setLevel(logging.ERROR)

CACHE: list[int] = []
