-- +goose Up

-- The event store: the history of each aggregate, in order.
CREATE TABLE events (
    stream      text        NOT NULL,
    version     integer     NOT NULL,
    position    bigint      GENERATED ALWAYS AS IDENTITY,
    type        text        NOT NULL,
    data        jsonb       NOT NULL,
    message_id  uuid        NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    schema      smallint    NOT NULL DEFAULT 1,
    CONSTRAINT events_pkey PRIMARY KEY (stream, version),
    CONSTRAINT events_version_positive CHECK (version > 0),
    CONSTRAINT events_schema_positive CHECK (schema > 0)
) WITH (autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);
-- Vacuum this append-only table after a fixed number of inserts instead of a fraction of
-- its size: otherwise vacuums become ever rarer and longer, and the audit cannot rely
-- on the visibility map.

COMMENT ON TABLE events IS 'Streams of events. Versions of a stream are 1..n without gaps.';
COMMENT ON COLUMN events.position IS 'Order of all events. Assigned before commit, so a reader that follows it must wait for older transactions.';
COMMENT ON COLUMN events.message_id IS 'The message whose handling recorded the event.';
COMMENT ON COLUMN events.schema IS 'Schema version of data. Older versions are upcast when read.';

-- A btree, not BRIN: readers query short ranges of the newest positions, which BRIN
-- has not summarized yet.
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

COMMENT ON TABLE snapshots IS 'The state of a stream at a version, so that long streams need not be read from the start. Can be deleted at any time.';

-- One row per projection, updated several times a second.
CREATE TABLE projections (
    name       text        NOT NULL,
    position   bigint      NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    rebuilt_at timestamptz,
    CONSTRAINT projections_pkey PRIMARY KEY (name),
    CONSTRAINT projections_position_not_negative CHECK (position >= 0)
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);

COMMENT ON TABLE projections IS 'The position of each projection. The row lock lets one replica at a time advance it.';

-- +goose Down
DROP TABLE projections;
DROP TABLE snapshots;
DROP TABLE events;
