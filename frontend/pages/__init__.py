"""One script per page; `frontend/app.py` names them."""
