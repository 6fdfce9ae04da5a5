-- +goose Up

ALTER TABLE poison
    ADD COLUMN attempts             integer NOT NULL DEFAULT 0,
    ADD COLUMN first_release        text    NOT NULL DEFAULT '',
    ADD COLUMN last_release         text    NOT NULL DEFAULT '',
    ADD COLUMN cause                text    NOT NULL DEFAULT '',
    ADD COLUMN group_id             text    NOT NULL DEFAULT '',
    ADD COLUMN revision             integer NOT NULL DEFAULT 1,
    ADD COLUMN edited               bytea,
    ADD COLUMN resolution           text,
    ADD COLUMN resolved_at          timestamptz,
    ADD COLUMN requeued_as          uuid,
    ADD COLUMN requeued_fingerprint bigint;

-- Entries of earlier releases: nearly what poison.Cause does. One that fails
-- again gets the exact text.
UPDATE poison SET cause = left(regexp_replace(regexp_replace(split_part(error, chr(10), 1),
    '"[^"]*"', '?', 'g'), '[[:alnum:]_-]*[0-9][[:alnum:]_.-]*', '?', 'g'), 300);
UPDATE poison SET group_id = left(encode(sha256(convert_to(consumer || chr(1) || reason || chr(1) || cause, 'UTF8')), 'hex'), 12);

-- The defaults stay: a replica of the release before still adds entries.
ALTER TABLE poison
    ADD CONSTRAINT poison_resolution_known CHECK (resolution IN ('requeued', 'discarded')),
    ADD CONSTRAINT poison_resolved CHECK ((resolution IS NULL) = (resolved_at IS NULL)),
    ADD CONSTRAINT poison_requeued CHECK ((requeued_as IS NULL) = (requeued_fingerprint IS NULL)),
    ADD CONSTRAINT poison_attempts_not_negative CHECK (attempts >= 0);

COMMENT ON COLUMN poison.attempts IS 'How often the message was tried in all, across its replays.';
COMMENT ON COLUMN poison.first_release IS 'Version of the program that poisoned the message first.';
COMMENT ON COLUMN poison.last_release IS 'Version of the program that poisoned the message last.';
COMMENT ON COLUMN poison.cause IS 'The first line of the error with its values taken out.';
COMMENT ON COLUMN poison.group_id IS 'Digest of consumer, reason and cause: the same for entries that failed for the same cause.';
COMMENT ON COLUMN poison.revision IS 'Grows with every change of the entry; tells a change made meanwhile.';
COMMENT ON COLUMN poison.edited IS 'The payload as an operator mended it; the original stays.';
COMMENT ON COLUMN poison.resolution IS 'What an operator decided; NULL while the entry is open. A requeued message that fails again opens its entry again.';
COMMENT ON COLUMN poison.requeued_as IS 'The id under which the message was requeued last: its own, or a new one if its own was applied with another body.';
COMMENT ON COLUMN poison.requeued_fingerprint IS 'Fingerprint of the payload that was requeued last: with requeued_as it finds the entry when that fails again.';

CREATE INDEX poison_open ON poison (id) WHERE resolution IS NULL;
CREATE INDEX poison_group ON poison (group_id, id);
CREATE INDEX poison_resolved_at ON poison (resolved_at) WHERE resolved_at IS NOT NULL;
CREATE INDEX poison_requeued_as ON poison (requeued_as) WHERE requeued_as IS NOT NULL;
-- A digest, because a key may be longer than an index can hold, and what
-- cannot be poisoned cannot be acknowledged.
CREATE INDEX poison_open_key ON poison (hashtextextended(key, 0), id) WHERE resolution IS NULL;

CREATE TABLE poison_actions (
    id         bigint      GENERATED ALWAYS AS IDENTITY,
    entry_id   bigint      NOT NULL,
    action     text        NOT NULL,
    who        text        NOT NULL,
    why        text        NOT NULL,
    payload    bytea,
    message_id uuid,
    acted_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT poison_actions_pkey PRIMARY KEY (id),
    CONSTRAINT poison_actions_entry FOREIGN KEY (entry_id) REFERENCES poison (id) ON DELETE CASCADE,
    CONSTRAINT poison_actions_known CHECK (action IN ('edited', 'requeued', 'discarded', 'reopened')),
    CONSTRAINT poison_actions_who CHECK (who <> ''),
    CONSTRAINT poison_actions_discarded_why CHECK (action <> 'discarded' OR why <> '')
);

COMMENT ON TABLE poison_actions IS 'What was done with poisoned messages: a row is written in the transaction that does it, and goes with its entry.';
COMMENT ON COLUMN poison_actions.action IS 'reopened is the service''s own: a requeued message failed again.';
COMMENT ON COLUMN poison_actions.payload IS 'The payload after an edit.';
COMMENT ON COLUMN poison_actions.message_id IS 'The id under which the message was requeued.';
CREATE INDEX poison_actions_of_entry ON poison_actions (entry_id, id);

-- Answers of the HTTP API by the Idempotency-Key of their request.
CREATE TABLE idempotency_keys (
    key         text        NOT NULL,
    fingerprint bytea       NOT NULL,
    status      integer     NOT NULL,
    headers     jsonb       NOT NULL,
    body        bytea       NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (key)
);

COMMENT ON TABLE idempotency_keys IS 'Answers that are given again to a request that is sent again; kept for a day.';
COMMENT ON COLUMN idempotency_keys.fingerprint IS 'SHA-256 of method, address and body: the same key with another request is refused.';

-- +goose Down
DROP TABLE idempotency_keys;
DROP TABLE poison_actions;
DROP INDEX poison_open_key;
DROP INDEX poison_requeued_as;
DROP INDEX poison_resolved_at;
DROP INDEX poison_group;
DROP INDEX poison_open;
ALTER TABLE poison
    DROP COLUMN requeued_fingerprint, DROP COLUMN requeued_as, DROP COLUMN resolved_at, DROP COLUMN resolution,
    DROP COLUMN edited, DROP COLUMN revision, DROP COLUMN group_id, DROP COLUMN cause,
    DROP COLUMN last_release, DROP COLUMN first_release, DROP COLUMN attempts;
