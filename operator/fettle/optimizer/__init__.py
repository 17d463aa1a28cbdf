"""What runs inside a Job: prepare, build, measure, publish."""
