-- +goose Up

-- The inbox records which messages have been applied. A row is written in the
-- transaction that applies the message, so it exists if and only if the effects
-- do.
CREATE TABLE inbox (
    consumer       text        NOT NULL,
    message_id     uuid        NOT NULL,
    day            date        NOT NULL,
    fingerprint    bigint      NOT NULL,
    applied_at     timestamptz NOT NULL DEFAULT now(),
    correlation_id uuid,
    causation_id   uuid,
    CONSTRAINT inbox_pkey PRIMARY KEY (consumer, message_id, day)
) PARTITION BY RANGE (day);

COMMENT ON TABLE inbox IS 'Applied messages: one row per (consumer, message).';
COMMENT ON COLUMN inbox.day IS 'Day in a UUIDv7 message_id, 1970-01-01 for other ids. It depends only on the id, so that a redelivery after midnight finds the same partition.';
COMMENT ON COLUMN inbox.fingerprint IS 'First 8 bytes of the SHA-256 of the payload: distinguishes a redelivery from a different message with the same id.';
COMMENT ON COLUMN inbox.correlation_id IS 'The message that started the conversation; NULL if it is this one.';

CREATE TABLE inbox_default PARTITION OF inbox DEFAULT
    WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 250000);
COMMENT ON TABLE inbox_default IS 'Rows whose day has no partition: ids of other producers, and UUIDv7 ids with a distant time.';

-- The outbox holds messages to be published. A row is deleted once the broker has
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
    traceparent    text,
    refused        text,
    CONSTRAINT outbox_refused_is_never_due CHECK (refused IS NULL OR available_at = 'infinity'),
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
COMMENT ON COLUMN outbox.seq IS 'Order of publication within a key. Assigned after the row lock of the aggregate is taken, so it follows the commit order per key.';
COMMENT ON COLUMN outbox.shard IS 'Hash of the key modulo 64. The relay that holds the advisory lock of a shard publishes its rows.';
COMMENT ON COLUMN outbox.headers IS 'Additional headers to send; non-text values are stored as {"base64": "..."}.';
COMMENT ON COLUMN outbox.available_at IS 'When the message becomes due; NULL once it is due, infinity if the broker refuses it.';
COMMENT ON COLUMN outbox.refused IS 'Why the broker refuses the message, which then waits for an operator.';
COMMENT ON COLUMN outbox.traceparent IS 'W3C trace context of the span that caused the message.';

-- Each row is in exactly one of these two indexes: the queue or the schedule.
CREATE UNIQUE INDEX outbox_ready ON outbox (seq) WHERE available_at IS NULL;
CREATE INDEX outbox_scheduled ON outbox (available_at) WHERE available_at IS NOT NULL;

-- Published messages of topics that are not consumed here. No inbox has them, so
-- without this table conversations would omit them.
CREATE TABLE published_messages (
    day            date        NOT NULL DEFAULT (now() AT TIME ZONE 'UTC')::date,
    topic          text        NOT NULL,
    message_id     uuid        NOT NULL,
    correlation_id uuid        NOT NULL,
    causation_id   uuid,
    published_at   timestamptz NOT NULL DEFAULT now()
) PARTITION BY RANGE (day);

COMMENT ON TABLE published_messages IS 'Published messages of topics that are not consumed here, for conversations. Kept as long as the inbox.';
CREATE TABLE published_messages_default PARTITION OF published_messages DEFAULT;

-- Keys with failed messages. While a message waits, it blocks later messages with its
-- key. While messages are only stopped, later ones are applied and recorded in
-- overtaking_messages. The row is the key's lock: batches and new failed messages lock it
-- FOR KEY SHARE; freeing the key and requeueing lock it FOR UPDATE.
CREATE TABLE failed_keys (
    consumer text        NOT NULL,
    key      text        NOT NULL,
    due_at   timestamptz,
    awaits   text[]      NOT NULL DEFAULT '{}',
    CONSTRAINT failed_keys_pkey PRIMARY KEY (consumer, key)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

COMMENT ON TABLE failed_keys IS 'Keys of a consumer with waiting or stopped messages. The first waiting message is retried at due_at.';
COMMENT ON COLUMN failed_keys.due_at IS 'NULL if no message waits: the key then blocks nothing. Also a lease: a process advances it before it tries the message.';
COMMENT ON COLUMN failed_keys.awaits IS 'Topics that may carry a message that the first waiting message awaits. When one is applied, the key becomes due.';
CREATE INDEX failed_keys_due ON failed_keys (consumer, due_at) WHERE due_at IS NOT NULL;

CREATE INDEX failed_keys_awaiting ON failed_keys (key) WHERE awaits <> '{}';

-- Messages that did not go through.
CREATE TABLE failed_messages (
    id            bigint      GENERATED ALWAYS AS IDENTITY,
    state         text        NOT NULL,
    consumer      text        NOT NULL,
    topic         text        NOT NULL,
    key           text        NOT NULL,
    failed_key    text,
    message_id    uuid        NOT NULL,
    fingerprint   bigint      NOT NULL,
    applied_as    uuid,
    origin        text        NOT NULL,
    headers       jsonb       NOT NULL,
    payload       bytea       NOT NULL,
    edited        bytea,
    revision      integer     NOT NULL DEFAULT 1,
    reason        text        NOT NULL DEFAULT '',
    error         text        NOT NULL DEFAULT '',
    cause         text        NOT NULL DEFAULT '',
    group_id      text        NOT NULL DEFAULT '',
    attempts      integer     NOT NULL DEFAULT 0,
    deliveries    integer     NOT NULL DEFAULT 0,
    first_at      timestamptz NOT NULL DEFAULT now(),
    last_at       timestamptz NOT NULL DEFAULT now(),
    tried_at      timestamptz,
    awaits_since  timestamptz,
    first_release text        NOT NULL DEFAULT '',
    last_release  text        NOT NULL DEFAULT '',
    resolution    text,
    resolved_at   timestamptz,
    CONSTRAINT failed_messages_pkey PRIMARY KEY (id),
    CONSTRAINT failed_messages_once UNIQUE (consumer, message_id, fingerprint),
    CONSTRAINT failed_messages_key FOREIGN KEY (consumer, failed_key) REFERENCES failed_keys (consumer, key),
    CONSTRAINT failed_messages_state_known CHECK (state IN ('waiting', 'stopped', 'resolved')),
    CONSTRAINT failed_messages_holds_key CHECK (CASE state WHEN 'waiting' THEN failed_key IS NOT NULL WHEN 'resolved' THEN failed_key IS NULL ELSE true END),
    CONSTRAINT failed_messages_stopped CHECK (state = 'waiting' OR (deliveries > 0 AND reason <> '')),
    CONSTRAINT failed_messages_resolved CHECK ((state = 'resolved') = (resolution IS NOT NULL) AND (state = 'resolved') = (resolved_at IS NOT NULL)),
    CONSTRAINT failed_messages_resolution_known CHECK (resolution IN ('applied', 'discarded')),
    CONSTRAINT failed_messages_counts CHECK (attempts >= 0 AND deliveries >= 0 AND revision > 0)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

COMMENT ON TABLE failed_messages IS 'Messages that did not go through. waiting: the first of its key has a next attempt due, the others are blocked by it. stopped: needs an operator. resolved: was stopped, then applied after a requeue or discarded. An applied message that was never stopped is deleted.';
COMMENT ON COLUMN failed_messages.id IS 'Order of arrival: the lowest waiting id of a key is tried, the others wait.';
COMMENT ON COLUMN failed_messages.key IS 'The key of the payload, or the broker''s key if the payload has no readable key.';
COMMENT ON COLUMN failed_messages.failed_key IS 'The key in failed_keys until the message is resolved: key, unless an edit changed it or it is too long for an index. NULL if a stopped message has no readable key.';
COMMENT ON COLUMN failed_messages.applied_as IS 'The id under which the message is applied, if another payload was applied under its own id.';
COMMENT ON COLUMN failed_messages.origin IS 'Where the message was read, for example kafka:orders.created/3@42.';
COMMENT ON COLUMN failed_messages.headers IS 'Headers as received; non-text values are stored as {"base64": "..."}.';
COMMENT ON COLUMN failed_messages.edited IS 'The payload after an operator''s edit; the original is kept.';
COMMENT ON COLUMN failed_messages.revision IS 'Increases with each change of the row, to detect concurrent changes.';
COMMENT ON COLUMN failed_messages.reason IS 'The class of the failure; empty for a message that is only blocked.';
COMMENT ON COLUMN failed_messages.cause IS 'The first line of the error without its variable values.';
COMMENT ON COLUMN failed_messages.group_id IS 'Digest of consumer, reason and cause: equal for messages whose failures have the same cause.';
COMMENT ON COLUMN failed_messages.attempts IS 'How many times the message has failed, across requeues.';
COMMENT ON COLUMN failed_messages.deliveries IS 'How many times the message was stopped. A redelivery increments it instead of adding a row.';
COMMENT ON COLUMN failed_messages.tried_at IS 'When the last attempt failed; NULL if the message has not been tried since it was blocked or requeued.';
COMMENT ON COLUMN failed_messages.awaits_since IS 'When the message was first tried and found to await another one; NULL if that has not happened since it was stored or requeued, in the future while the other one is in the outbox.';
COMMENT ON COLUMN failed_messages.first_release IS 'Program version at the first failure.';
COMMENT ON COLUMN failed_messages.last_release IS 'Program version at the last failure.';

-- The condition does not use the state: when a key is freed, the foreign key looks up
-- rows by consumer and key in any state, and without this index it would read all
-- the consumer's messages.
CREATE INDEX failed_messages_of_key ON failed_messages (consumer, failed_key, state, id) WHERE failed_key IS NOT NULL;
CREATE INDEX failed_messages_open ON failed_messages (id) WHERE state = 'stopped';
CREATE INDEX failed_messages_group ON failed_messages (group_id, id);
CREATE INDEX failed_messages_resolved_at ON failed_messages (resolved_at) WHERE resolved_at IS NOT NULL;
CREATE INDEX failed_messages_applied_as ON failed_messages (applied_as) WHERE applied_as IS NOT NULL;
-- A digest, because a key may exceed the maximum size of an index entry, and a message
-- that cannot be stored cannot be acknowledged.
CREATE INDEX failed_messages_open_key ON failed_messages (hashtextextended(key, 0), id) WHERE state = 'stopped';

-- Messages that were applied while earlier messages with their key were stopped: if one
-- of those is requeued, it may overwrite what they did. There is one row per key and
-- failed message that they came after, so a busy key does not fill the table.
CREATE TABLE overtaking_messages (
    consumer text        NOT NULL,
    key      text        NOT NULL,
    after_id bigint      NOT NULL,
    messages bigint      NOT NULL,
    last_ids uuid[]      NOT NULL,
    last_at  timestamptz NOT NULL,
    CONSTRAINT overtaking_messages_pkey PRIMARY KEY (consumer, key, after_id),
    CONSTRAINT overtaking_messages_key FOREIGN KEY (consumer, key) REFERENCES failed_keys (consumer, key) ON DELETE CASCADE
) WITH (fillfactor = 50);

COMMENT ON TABLE overtaking_messages IS 'How many messages of a key were applied after its stopped messages, and the last of them. Deleted with the key.';
COMMENT ON COLUMN overtaking_messages.after_id IS 'They overtook the failed messages of the key up to this id.';
COMMENT ON COLUMN overtaking_messages.last_ids IS 'The ids of the last ten messages, newest first.';

CREATE TABLE paused_consumers (
    consumer  text        NOT NULL,
    who       text        NOT NULL,
    why       text        NOT NULL,
    paused_at timestamptz NOT NULL DEFAULT now(),
    until     timestamptz,
    CONSTRAINT paused_consumers_pkey PRIMARY KEY (consumer)
);

COMMENT ON TABLE paused_consumers IS 'Consumers paused by an operator, on all replicas.';
COMMENT ON COLUMN paused_consumers.until IS 'When the pause ends on its own; NULL if it does not.';

-- All operator actions. Each is written in the transaction that performs it.
CREATE TABLE operator_actions (
    id         bigint      GENERATED ALWAYS AS IDENTITY,
    action     text        NOT NULL,
    subject    text        NOT NULL,
    entry_id   bigint,
    who        text        NOT NULL,
    why        text        NOT NULL,
    detail     text        NOT NULL DEFAULT '',
    payload    bytea,
    message_id uuid,
    request_id uuid,
    acted_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT operator_actions_pkey PRIMARY KEY (id),
    CONSTRAINT operator_actions_known CHECK (action IN ('paused', 'resumed', 'edited', 'requeued', 'reopened', 'discarded', 'retried', 'skipped', 'repaired', 'erased')),
    CONSTRAINT operator_actions_who CHECK (who <> ''),
    CONSTRAINT operator_actions_discarded_why CHECK (action <> 'discarded' OR why <> '')
);

COMMENT ON TABLE operator_actions IS 'What operators did, when and why. Only the service records reopened: a requeued message failed again.';
COMMENT ON COLUMN operator_actions.subject IS 'The target: a consumer, a consumer and key, an invariant and id, or a user.';
COMMENT ON COLUMN operator_actions.entry_id IS 'The failed message that was changed. There is no foreign key, because the history outlives the message.';
COMMENT ON COLUMN operator_actions.detail IS 'Extra information, such as the values before and after a repair.';
COMMENT ON COLUMN operator_actions.payload IS 'The payload after an edit.';
COMMENT ON COLUMN operator_actions.message_id IS 'The id under which a message was requeued.';
COMMENT ON COLUMN operator_actions.request_id IS 'Equal for all actions of one command or HTTP request that retries messages, so that their outcome can be looked up.';
CREATE INDEX operator_actions_of_request ON operator_actions (request_id) WHERE request_id IS NOT NULL;
CREATE INDEX operator_actions_of_entry ON operator_actions (entry_id, id) WHERE entry_id IS NOT NULL;

-- +goose Down
DROP TABLE operator_actions;
DROP TABLE paused_consumers;
DROP TABLE overtaking_messages;
DROP TABLE failed_messages;
DROP TABLE failed_keys;
DROP TABLE published_messages;
DROP TABLE outbox;
DROP TABLE inbox;
