"""One script per page; `frontend/app.py` names them.

Not called `pages`: Streamlit runs the scripts of a folder of that name by itself, past `app.py`.
"""
