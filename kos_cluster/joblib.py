"""joblib's backend "kos". Importing this module registers it.

import kos_cluster.joblib

with joblib.parallel_config("kos"):
    search.fit(x, y)
"""

from __future__ import annotations

from kos_cluster.tasks import joblibbackend

joblibbackend.register()
