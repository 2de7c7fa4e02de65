"""What all pages share: the page table, the URL as state, a run's heading and snapshot, progress.

Uses `api` and `html`; used by the noun wings and `views`.
"""
