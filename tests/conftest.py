"""Set up what must hold before any test module is imported."""

import os

# One BLAS thread, as on a device, and read by the libraries when they load: so before the first import of numpy.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"
