-- +goose Up

-- Keys that wait: a message failed, and those that came for the same key after
-- it stand behind it. The row is the lock of the key: who adds a message holds
-- it FOR KEY SHARE (the foreign key does), who ends the wait FOR UPDATE.
CREATE TABLE parked_keys (
    consumer text        NOT NULL,
    key      text        NOT NULL,
    due_at   timestamptz NOT NULL,
    CONSTRAINT parked_keys_pkey PRIMARY KEY (consumer, key)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

COMMENT ON TABLE parked_keys IS 'Keys of a consumer whose first parked message is tried again at due_at.';
COMMENT ON COLUMN parked_keys.due_at IS 'Also a lease: whoever tries the message moves it ahead first.';
CREATE INDEX parked_keys_due ON parked_keys (consumer, due_at);

CREATE TABLE parked (
    seq         bigint      GENERATED ALWAYS AS IDENTITY,
    consumer    text        NOT NULL,
    topic       text        NOT NULL,
    key         text        NOT NULL,
    message_id  uuid        NOT NULL,
    fingerprint bigint      NOT NULL,
    origin      text        NOT NULL,
    headers     jsonb       NOT NULL,
    payload     bytea       NOT NULL,
    attempts    integer     NOT NULL,
    error       text,
    parked_at   timestamptz NOT NULL DEFAULT now(),
    tried_at    timestamptz,
    CONSTRAINT parked_pkey PRIMARY KEY (seq),
    CONSTRAINT parked_once UNIQUE (consumer, message_id, fingerprint),
    CONSTRAINT parked_key FOREIGN KEY (consumer, key) REFERENCES parked_keys (consumer, key),
    CONSTRAINT parked_attempts_not_negative CHECK (attempts >= 0)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

COMMENT ON TABLE parked IS 'Messages that wait for another attempt, and those behind them. A row is gone when its message was applied or poisoned.';
COMMENT ON COLUMN parked.seq IS 'Order of arrival: the lowest of a key is tried, the others wait.';
COMMENT ON COLUMN parked.attempts IS 'How often the message failed, replays from the poison queue included.';
COMMENT ON COLUMN parked.error IS 'Why the last attempt failed; NULL for a message that only waits.';
CREATE INDEX parked_by_key ON parked (consumer, key, seq);

-- Nearly always empty: the link that reads these rows passes over no others.
CREATE INDEX outbox_direct ON outbox (seq) WHERE available_at IS NULL AND starts_with(topic, '@');
COMMENT ON INDEX outbox_direct IS 'Messages for one consumer alone.';

CREATE TABLE paused_consumers (
    consumer  text        NOT NULL,
    who       text        NOT NULL,
    why       text        NOT NULL,
    paused_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT paused_consumers_pkey PRIMARY KEY (consumer)
);

COMMENT ON TABLE paused_consumers IS 'Consumers that an operator paused, on all replicas.';

-- Who did what to a consumer or a parked message, in the transaction that did it.
CREATE TABLE operations (
    id      bigint      GENERATED ALWAYS AS IDENTITY,
    action  text        NOT NULL,
    subject text        NOT NULL,
    who     text        NOT NULL,
    why     text        NOT NULL,
    at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT operations_pkey PRIMARY KEY (id),
    CONSTRAINT operations_known CHECK (action IN ('consumer_paused', 'consumer_resumed', 'parked_retried', 'parked_skipped'))
);

COMMENT ON TABLE operations IS 'What operators did to consumers and parked messages.';

-- +goose Down
DROP TABLE operations;
DROP TABLE paused_consumers;
DROP TABLE parked;
DROP TABLE parked_keys;
DROP INDEX outbox_direct;
