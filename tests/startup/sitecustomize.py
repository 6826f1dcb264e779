"Python imports this as it starts: conftest.py puts the folder on the path of all that tests start, kernels among them."
import gc

import deprecations
import unsynced

deprecations.install()
unsynced.install()
gc.set_threshold(20_000)  # while torch and pandas are imported, what is there is looked through for garbage many times less
