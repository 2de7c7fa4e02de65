"""The parts of the launch page: presets, the form derived from the configuration, forecasts.

Uses `api`, `html` and `shell`; used by `views`.
"""
