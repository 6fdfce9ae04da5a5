-- +goose NO TRANSACTION
-- +goose Up

-- A conversation is looked up by the id of a message or by its correlation id. A btree
-- would cost each message an entry at a random place. These indexes have a bloom filter
-- for every 32 pages, which Postgres makes in the background once the pages are full: an
-- insertion costs next to nothing, and a look-up reads the filters and a few pages.
--
-- The index of a partitioned table cannot be built concurrently. So it is created on the
-- table alone, for partitions that are created from now on, and concurrently on the
-- default partition. Older partitions are read without it until they are dropped.
CREATE INDEX IF NOT EXISTS inbox_conversation ON ONLY inbox
    USING brin (message_id uuid_bloom_ops (n_distinct_per_range = 2500), correlation_id uuid_bloom_ops (n_distinct_per_range = 2500))
    WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX IF NOT EXISTS published_messages_conversation ON ONLY published_messages
    USING brin (message_id uuid_bloom_ops (n_distinct_per_range = 2500), correlation_id uuid_bloom_ops (n_distinct_per_range = 2500))
    WITH (pages_per_range = 32, autosummarize = on);

SET lock_timeout = 0;
DROP INDEX IF EXISTS inbox_default_conversation;
DROP INDEX IF EXISTS published_messages_default_conversation;
CREATE INDEX CONCURRENTLY inbox_default_conversation ON inbox_default
    USING brin (message_id uuid_bloom_ops (n_distinct_per_range = 2500), correlation_id uuid_bloom_ops (n_distinct_per_range = 2500))
    WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX CONCURRENTLY published_messages_default_conversation ON published_messages_default
    USING brin (message_id uuid_bloom_ops (n_distinct_per_range = 2500), correlation_id uuid_bloom_ops (n_distinct_per_range = 2500))
    WITH (pages_per_range = 32, autosummarize = on);
SET lock_timeout = '500ms';

-- One statement, so that another attempt finds either both attached or none.
-- +goose StatementBegin
DO $$
BEGIN
    ALTER INDEX inbox_conversation ATTACH PARTITION inbox_default_conversation;
    ALTER INDEX published_messages_conversation ATTACH PARTITION published_messages_default_conversation;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP INDEX published_messages_conversation;
DROP INDEX inbox_conversation;
