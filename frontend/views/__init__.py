"""One script per page, named in `frontend/shell/navigation.py`.

Fed by every other wing; read by `app`.

Not called `pages`: Streamlit runs the scripts of a folder of that name by itself, without `app.py`.
"""
