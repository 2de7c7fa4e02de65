"""One script per page, named in `frontend/shell/navigation.py`.

Uses every other wing; used by `app`.

Not called `pages`: Streamlit runs the scripts of a folder of that name by itself, without `app.py`.
"""
