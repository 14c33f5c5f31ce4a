"""The columns of the tables that we create, as Arrow schemas.

The four trace tables have the columns that Unity Catalog publishes (version 2 of the layout); where those
are VARIANT, ours hold JSON text, because deltalake 1.6 cannot append VARIANT.
Source: Databricks, "OpenTelemetry table reference for Zerobus Ingest" and MLflow's Unity Catalog traces.
"""

import pyarrow as pa

TIMESTAMP = pa.timestamp("us", tz="UTC")
JSON_TEXT = pa.string()

_RESOURCE = pa.struct([("attributes", JSON_TEXT), ("dropped_attributes_count", pa.int32())])
_SCOPE = pa.struct(
    [
        ("name", pa.string()),
        ("version", pa.string()),
        ("attributes", JSON_TEXT),
        ("dropped_attributes_count", pa.int32()),
    ]
)

SPANS = pa.schema(
    [
        ("record_id", pa.string()),
        ("time", TIMESTAMP),
        ("date", pa.date32()),
        ("service_name", pa.string()),
        ("trace_id", pa.string()),
        ("span_id", pa.string()),
        ("trace_state", pa.string()),
        ("parent_span_id", pa.string()),
        ("flags", pa.int32()),
        ("name", pa.string()),
        ("kind", pa.string()),
        ("start_time_unix_nano", pa.int64()),
        ("end_time_unix_nano", pa.int64()),
        ("attributes", JSON_TEXT),
        ("dropped_attributes_count", pa.int32()),
        (
            "events",
            pa.list_(
                pa.struct(
                    [
                        ("time_unix_nano", pa.int64()),
                        ("name", pa.string()),
                        ("attributes", JSON_TEXT),
                        ("dropped_attributes_count", pa.int32()),
                    ]
                )
            ),
        ),
        ("dropped_events_count", pa.int32()),
        (
            "links",
            pa.list_(
                pa.struct(
                    [
                        ("trace_id", pa.string()),
                        ("span_id", pa.string()),
                        ("trace_state", pa.string()),
                        ("attributes", JSON_TEXT),
                        ("dropped_attributes_count", pa.int32()),
                        ("flags", pa.int32()),
                    ]
                )
            ),
        ),
        ("dropped_links_count", pa.int32()),
        ("status", pa.struct([("message", pa.string()), ("code", pa.string())])),
        ("resource", _RESOURCE),
        ("resource_schema_url", pa.string()),
        ("instrumentation_scope", _SCOPE),
        ("span_schema_url", pa.string()),
    ]
)

LOGS = pa.schema(
    [
        ("record_id", pa.string()),
        ("time", TIMESTAMP),
        ("date", pa.date32()),
        ("service_name", pa.string()),
        ("event_name", pa.string()),
        ("trace_id", pa.string()),
        ("span_id", pa.string()),
        ("time_unix_nano", pa.int64()),
        ("observed_time_unix_nano", pa.int64()),
        ("severity_number", pa.string()),
        ("severity_text", pa.string()),
        ("body", JSON_TEXT),
        ("attributes", JSON_TEXT),
        ("dropped_attributes_count", pa.int32()),
        ("flags", pa.int32()),
        ("resource", _RESOURCE),
        ("resource_schema_url", pa.string()),
        ("instrumentation_scope", _SCOPE),
        ("log_schema_url", pa.string()),
    ]
)

_EXEMPLARS = pa.list_(
    pa.struct(
        [
            ("time_unix_nano", pa.int64()),
            ("value", pa.float64()),
            ("span_id", pa.string()),
            ("trace_id", pa.string()),
            ("filtered_attributes", JSON_TEXT),
        ]
    )
)
_BUCKETS = pa.struct([("offset", pa.int32()), ("bucket_counts", pa.list_(pa.int64()))])
_NUMBER = [
    ("value", pa.float64()),
    ("exemplars", _EXEMPLARS),
    ("attributes", JSON_TEXT),
    ("flags", pa.int32()),
]

METRICS = pa.schema(
    [
        ("record_id", pa.string()),
        ("time", TIMESTAMP),
        ("date", pa.date32()),
        ("service_name", pa.string()),
        ("start_time_unix_nano", pa.int64()),
        ("time_unix_nano", pa.int64()),
        ("name", pa.string()),
        ("description", pa.string()),
        ("unit", pa.string()),
        ("metric_type", pa.string()),
        ("gauge", pa.struct(_NUMBER)),
        (
            "sum",
            pa.struct([*_NUMBER, ("aggregation_temporality", pa.string()), ("is_monotonic", pa.bool_())]),
        ),
        (
            "histogram",
            pa.struct(
                [
                    ("count", pa.int64()),
                    ("sum", pa.float64()),
                    ("bucket_counts", pa.list_(pa.int64())),
                    ("explicit_bounds", pa.list_(pa.float64())),
                    ("exemplars", _EXEMPLARS),
                    ("attributes", JSON_TEXT),
                    ("flags", pa.int32()),
                    ("min", pa.float64()),
                    ("max", pa.float64()),
                    ("aggregation_temporality", pa.string()),
                ]
            ),
        ),
        (
            "exponential_histogram",
            pa.struct(
                [
                    ("attributes", JSON_TEXT),
                    ("count", pa.int64()),
                    ("sum", pa.float64()),
                    ("scale", pa.int32()),
                    ("zero_count", pa.int64()),
                    ("positive_bucket", _BUCKETS),
                    ("negative_bucket", _BUCKETS),
                    ("flags", pa.int32()),
                    ("exemplars", _EXEMPLARS),
                    ("min", pa.float64()),
                    ("max", pa.float64()),
                    ("zero_threshold", pa.float64()),
                    ("aggregation_temporality", pa.string()),
                ]
            ),
        ),
        (
            "summary",
            pa.struct(
                [
                    ("count", pa.int64()),
                    ("sum", pa.float64()),
                    (
                        "quantile_values",
                        pa.list_(pa.struct([("quantile", pa.float64()), ("value", pa.float64())])),
                    ),
                    ("attributes", JSON_TEXT),
                    ("flags", pa.int32()),
                ]
            ),
        ),
        ("metadata", JSON_TEXT),
        ("resource", _RESOURCE),
        ("resource_schema_url", pa.string()),
        ("instrumentation_scope", _SCOPE),
        ("metric_schema_url", pa.string()),
    ]
)

ANNOTATIONS = pa.schema(
    [
        ("annotation_id", pa.string()),
        ("target_type", pa.string()),
        ("target_id", pa.string()),
        ("annotation_type", pa.string()),
        ("name", pa.string()),
        ("value", JSON_TEXT),
        ("comment", pa.string()),
        ("metadata", JSON_TEXT),
        ("created_at", TIMESTAMP),
        ("created_by", pa.string()),
        ("updated_at", TIMESTAMP),
        ("updated_by", pa.string()),
        ("deleted_at", TIMESTAMP),
        ("deleted_by", pa.string()),
    ]
)

LEDGER = pa.schema(
    [
        ("seq", pa.int64()),
        ("day", pa.date32()),
        ("scope", pa.string()),
        ("target_type", pa.string()),
        ("target_id", pa.string()),
        ("trace_id", pa.string()),
        ("span_id", pa.string()),
        ("session_id", pa.string()),
        ("scorer", pa.string()),
        ("version", pa.string()),
        ("revision", pa.int32()),
        ("state", pa.string()),
        ("reason", pa.string()),
        ("due", TIMESTAMP),
        ("attempts", pa.int32()),
        ("first", TIMESTAMP),
        ("last", TIMESTAMP),
        ("commits", pa.list_(pa.int64())),
        ("upto", TIMESTAMP),
        ("set", JSON_TEXT),
        ("skipped", JSON_TEXT),
        ("run_id", pa.string()),
        ("at", TIMESTAMP),
        ("value", JSON_TEXT),
        ("passed", pa.bool_()),
        ("rationale", pa.string()),
        ("error", pa.string()),
        ("source_type", pa.string()),
        ("model", pa.string()),
        ("calls", pa.int32()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("cost_usd", pa.float64()),
        ("latency_ms", pa.float64()),
        ("metadata", JSON_TEXT),
        ("trace_start", TIMESTAMP),
    ]
)
