"""Imported first where its folder is in PYTHONPATH: the process of the model `dies` kills itself.

It does so while there is a file FARM_HOME/dies. The farm itself has no such switch.
"""

import os
import signal
from pathlib import Path

if os.environ.get("FARM_MODEL_NAME") == "dies" and Path(os.environ["FARM_HOME"], "dies").exists():
    os.kill(os.getpid(), signal.SIGKILL)
