__version__ = "0.1.0"

from .files import check_bytecode

check_bytecode(__path__[0])  # before any other module is imported
