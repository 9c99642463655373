"""What Prometheus sees of a run: one table of metrics, a board they are written on, an exporter.

``table`` defines every metric; collectors, reference documentation and tests are made from it.
Only the exporter knows HTTP, only the board knows ``prometheus_client``.
"""
