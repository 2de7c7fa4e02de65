"""What all pages share: the URL as state, navigation, snapshots, paging, progress, downloads.

Fed by `api` and `html`; read by the noun wings and `views`.
"""
