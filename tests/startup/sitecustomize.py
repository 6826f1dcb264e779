"Python imports this as it starts: conftest.py puts the folder on the path of all that tests start, kernels among them."
import deprecations

deprecations.install()
