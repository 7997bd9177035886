"""metrics: serves superd's metrics to Prometheus, and its health to probes.

Options: timeout.
Example: plugin = "metrics", listen = "tcp://127.0.0.1:9110"
See also: prometheus(1), promtool(1), `superd status --prometheus`
"""

from superd.plugin import Service, hookimpl
from superd_metrics.service import Metrics


@hookimpl
def superd_services() -> list[type[Service]]:
    return [Metrics]
