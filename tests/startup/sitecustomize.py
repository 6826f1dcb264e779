"Python imports this as it starts: so the processes that tests start, kernels among them, have the same filters as the tests. conftest.py puts the folder on their path."
import deprecations

deprecations.install()
