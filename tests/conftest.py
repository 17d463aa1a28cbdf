"""What every test runs under."""

from hypothesis import settings

# A machine under load is slow, not wrong: no example has a deadline of its own.
settings.register_profile("fettle", deadline=None)
settings.load_profile("fettle")
