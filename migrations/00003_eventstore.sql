-- +goose Up

ALTER TABLE events ADD COLUMN schema smallint NOT NULL DEFAULT 1;
ALTER TABLE events ADD CONSTRAINT events_schema_positive CHECK (schema > 0);
COMMENT ON COLUMN events.schema IS 'Version of the shape of data: older ones are upcast when they are read.';

-- Readers of all events ask for short ranges of positions, also of those that
-- were written a moment ago, which BRIN does not know yet.
DROP INDEX events_position;
CREATE UNIQUE INDEX events_position ON events (position);

CREATE TABLE snapshots (
    stream   text        NOT NULL,
    version  integer     NOT NULL,
    schema   smallint    NOT NULL,
    data     jsonb       NOT NULL,
    taken_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT snapshots_pkey PRIMARY KEY (stream),
    CONSTRAINT snapshots_version_positive CHECK (version > 0)
);

COMMENT ON TABLE snapshots IS 'The fold of a stream up to a version, so that long streams need not be read from their beginning. It can be deleted at any time.';

CREATE TABLE projections (
    name       text        NOT NULL,
    position   bigint      NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    rebuilt_at timestamptz,
    CONSTRAINT projections_pkey PRIMARY KEY (name),
    CONSTRAINT projections_position_not_negative CHECK (position >= 0)
);

COMMENT ON TABLE projections IS 'How far each projection has followed the events. The row lock makes one replica at a time go on.';

-- The place of a message in its conversation, for millrace trace.
ALTER TABLE inbox ADD COLUMN correlation_id uuid;
ALTER TABLE inbox ADD COLUMN causation_id uuid;
COMMENT ON COLUMN inbox.correlation_id IS 'The message that began the conversation; NULL when it is this one.';

ALTER TABLE outbox ADD COLUMN traceparent text;
COMMENT ON COLUMN outbox.traceparent IS 'W3C trace context of the span that caused the message.';

-- +goose Down
ALTER TABLE outbox DROP COLUMN traceparent;
ALTER TABLE inbox DROP COLUMN causation_id;
ALTER TABLE inbox DROP COLUMN correlation_id;
DROP TABLE projections;
DROP TABLE snapshots;
DROP INDEX events_position;
CREATE INDEX events_position ON events USING brin (position) WITH (pages_per_range = 32, autosummarize = on);
ALTER TABLE events DROP COLUMN schema;
