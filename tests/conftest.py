"""What every test runs under."""

import os

# As many test processes run as there are cores: threads of numpy's products would only wait for each other. Before numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from hypothesis import settings

# A machine under load is slow, not wrong: no example has a deadline of its own.
settings.register_profile("fettle", deadline=None)
settings.load_profile("fettle")
