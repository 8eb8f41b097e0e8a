"""The served explorer: the pages of a run, and live questions to its network.

`session.py` answers questions about inputs, `uploads.py` lets in what users give, `jobs.py` has
commands do what takes minutes, `questions.py` names all that can be asked, over HTTP (`server.py`)
or by messages of a notebook (`notebook.py`). Imports everything but the command line. A new
question is a method of `Session` and a line of `questions.py`.
"""

from condec.explorer.notebook import show

__all__ = ["show"]
