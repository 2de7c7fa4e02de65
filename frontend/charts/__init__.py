"""Plotly figures as plain data for Plotly in the browser.

Uses the vocabulary and `html`; used by the noun wings and `views`.
"""
