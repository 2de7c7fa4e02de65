"""The REST endpoints, one module per noun; each module's `router` is served by `backend.app`.

Uses `http` and the services in it; used by `app`. An endpoint reads or writes the store, a
feature index or a service, and holds no other logic.
"""
