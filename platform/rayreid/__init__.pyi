# Types of the names that `__init__.py` imports when they are first used.
from rayreid.api import Experiment as Experiment
from rayreid.api import load as load
from rayreid.errors import UserError as UserError
from rayreid.inference.model import Model as Model
from rayreid.pipeline.results import Results as Results

__version__: str
__all__ = ["Experiment", "Model", "Results", "UserError", "__version__", "load"]
