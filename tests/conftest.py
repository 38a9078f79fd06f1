"""What every test stands on: one thread, and the same examples in every run."""

import os

from hypothesis import settings

# before torch is imported: the tensors here are small, and threads on shared cores wait for one another
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")
