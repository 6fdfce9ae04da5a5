-- +goose Up

CREATE TABLE analytics_events (
    day         date        NOT NULL,
    message_id  uuid        NOT NULL,
    event       text        NOT NULL,
    occurred_at timestamptz NOT NULL,
    user_id     text,
    properties  jsonb
) PARTITION BY RANGE (day);

COMMENT ON TABLE analytics_events IS 'Tracked events as received. The inbox prevents storing a message twice.';
COMMENT ON COLUMN analytics_events.day IS 'UTC day of occurred_at.';

CREATE TABLE analytics_events_default PARTITION OF analytics_events DEFAULT;
COMMENT ON TABLE analytics_events_default IS 'Events on days without a partition: far in the past or future.';

CREATE TABLE analytics_daily (
    day   date   NOT NULL,
    event text   NOT NULL,
    count bigint NOT NULL,
    CONSTRAINT analytics_daily_pkey PRIMARY KEY (day, event),
    CONSTRAINT analytics_daily_count_positive CHECK (count > 0)
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);

COMMENT ON TABLE analytics_daily IS 'How often each event occurred on each day (UTC). It outlives the events themselves.';

-- +goose Down
DROP TABLE analytics_daily;
DROP TABLE analytics_events;
