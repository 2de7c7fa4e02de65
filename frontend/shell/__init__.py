"""What all pages share: the page table, the URL as state, a run's heading and snapshot, progress.

Fed by `api` and `html`; read by the noun wings and `views`.
"""
