"""What the launch page is made of: the form read off the configuration, drafts, forecasts.

Fed by `api`, `html` and `shell`; read by `views`.
"""
