"""Flower's names since 1.18 for classes that brokerfl calls by their earlier names. Plain aliases; owns nothing else.

The others are elsewhere: ``Grid`` is ``brokerfl.server.Driver``; a RecordSet's ``array_records``, ``metric_records``
and ``config_records``, and a Metadata's ``reply_to_message_id``, are properties.
"""

from brokerfl.common.record import ConfigsRecord, MetricsRecord, ParametersRecord
from brokerfl.common.recordset import RecordSet

RecordDict = RecordSet
ArrayRecord = ParametersRecord
MetricRecord = MetricsRecord
ConfigRecord = ConfigsRecord
