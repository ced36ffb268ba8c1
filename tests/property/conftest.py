"""How many examples Hypothesis tries, and that a busy machine is no failure."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "holdfast",
    max_examples=60,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("holdfast")
