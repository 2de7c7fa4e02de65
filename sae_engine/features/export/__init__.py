"""Exports of a run's features, for other programs and for reading without a server.

`write` is the entry point. Each format's module has a `FeatureWriter`, named in
`schema.exports.EXPORT_FORMATS`, that writes a new folder, reading a few features at a time. No
torch, so the web process can export.
"""
