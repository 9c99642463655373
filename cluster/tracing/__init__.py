"""Traces of what every functional unit did, for Perfetto and chrome://tracing."""
