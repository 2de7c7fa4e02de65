"""The parts of the launch page: presets, the form derived from the configuration, forecasts.

Fed by `api`, `html` and `shell`; read by `views`.
"""
