-- +goose Up

-- The inbox: which messages have been applied. A row is written in the
-- transaction that applies the message, so it exists exactly when the effects do.
CREATE TABLE inbox (
    consumer    text        NOT NULL,
    message_id  uuid        NOT NULL,
    day         date        NOT NULL,
    fingerprint bigint      NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT inbox_pkey PRIMARY KEY (consumer, message_id, day)
) PARTITION BY RANGE (day);

COMMENT ON TABLE inbox IS 'Messages that were applied: one row per (consumer, message).';
COMMENT ON COLUMN inbox.day IS 'Day inside a UUIDv7 message_id, 1970-01-01 for other ids. It depends on the id alone, so that a redelivery after midnight meets the same partition.';
COMMENT ON COLUMN inbox.fingerprint IS 'First 8 bytes of the SHA-256 of the payload: tells a redelivery from another message under the same id.';

CREATE TABLE inbox_default PARTITION OF inbox DEFAULT;
COMMENT ON TABLE inbox_default IS 'Rows whose day has no partition of its own: ids of other producers, and UUIDv7 ids from far away in time.';

-- The outbox: messages to be published. A row leaves when the broker has
-- confirmed the message.
CREATE TABLE outbox (
    seq            bigint      GENERATED ALWAYS AS IDENTITY,
    shard          smallint    NOT NULL,
    topic          text        NOT NULL,
    key            text        NOT NULL,
    message_id     uuid        NOT NULL,
    correlation_id uuid        NOT NULL,
    causation_id   uuid,
    headers        jsonb,
    payload        bytea       NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    available_at   timestamptz,
    CONSTRAINT outbox_shard_range CHECK (shard BETWEEN 0 AND 63)
) WITH (
    fillfactor = 100,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 50000,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 1000000
);

COMMENT ON TABLE outbox IS 'Messages to be published, in order per key. Also the schedule: rows with available_at wait until then.';
COMMENT ON COLUMN outbox.seq IS 'Order of publication within a key. Taken after the row lock of the aggregate, so it follows the order of commits per key.';
COMMENT ON COLUMN outbox.shard IS 'Hash of the key modulo 64. The relay that holds the advisory lock of a shard publishes its rows.';
COMMENT ON COLUMN outbox.headers IS 'Further headers to send; a value that is no text is held as {"base64": "..."}.';
COMMENT ON COLUMN outbox.available_at IS 'When the message becomes due; NULL once it is.';

-- Each row is in exactly one of the two indexes: the queue or the schedule.
CREATE UNIQUE INDEX outbox_ready ON outbox (seq) WHERE available_at IS NULL;
CREATE INDEX outbox_scheduled ON outbox (available_at) WHERE available_at IS NOT NULL;

-- The poison queue: messages that could not be applied, as they came.
CREATE TABLE poison (
    id          bigint      GENERATED ALWAYS AS IDENTITY,
    consumer    text        NOT NULL,
    topic       text        NOT NULL,
    message_id  uuid        NOT NULL,
    fingerprint bigint      NOT NULL,
    origin      text        NOT NULL,
    key         text        NOT NULL,
    headers     jsonb       NOT NULL,
    payload     bytea       NOT NULL,
    reason      text        NOT NULL,
    error       text        NOT NULL,
    deliveries  integer     NOT NULL DEFAULT 1,
    first_at    timestamptz NOT NULL DEFAULT now(),
    last_at     timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT poison_pkey PRIMARY KEY (id),
    CONSTRAINT poison_once UNIQUE (consumer, message_id, fingerprint),
    CONSTRAINT poison_deliveries_positive CHECK (deliveries > 0)
);

COMMENT ON TABLE poison IS 'Messages that were rejected or kept failing, with their original bytes and headers.';
COMMENT ON COLUMN poison.origin IS 'Where the message was read, for example kafka:orders.created/3@42.';
COMMENT ON COLUMN poison.headers IS 'Headers as they came; a value that is no text is held as {"base64": "..."}.';
COMMENT ON COLUMN poison.deliveries IS 'How often the same message was poisoned: a redelivery adds to the entry instead of making another.';

-- +goose Down
DROP TABLE poison;
DROP TABLE outbox;
DROP TABLE inbox;
