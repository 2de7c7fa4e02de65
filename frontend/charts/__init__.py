"""Plotly figures as plain data for Plotly in the browser.

Fed by the vocabulary and `html`; read by the noun wings and `views`.
"""
