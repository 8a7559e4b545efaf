"""The names that Flower uses since 1.18 for what brokerfl calls as Flower did before. Plain aliases; owns nothing else.

Two are elsewhere, since they are no classes of this layer: ``Grid`` is ``brokerfl.server.Driver``, and a RecordSet's
``array_records``, ``metric_records`` and ``config_records`` and a Metadata's ``reply_to_message_id`` are properties.
"""

from brokerfl.common.record import ConfigsRecord, MetricsRecord, ParametersRecord, RecordSet

RecordDict = RecordSet
ArrayRecord = ParametersRecord
MetricRecord = MetricsRecord
ConfigRecord = ConfigsRecord
