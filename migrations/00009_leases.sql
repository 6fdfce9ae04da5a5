-- +goose Up

-- A lease used to be a due time in the future, so whatever made the key due also ended
-- the lease, and the message could be tried twice at the same time. Now the two are
-- separate.
ALTER TABLE failed_keys
    ADD COLUMN leased_at    timestamptz,
    ADD COLUMN leased_until timestamptz,
    ADD CONSTRAINT failed_keys_lease CHECK ((leased_at IS NULL) = (leased_until IS NULL));

COMMENT ON COLUMN failed_keys.due_at IS 'NULL if no message waits: the key then blocks nothing.';
COMMENT ON COLUMN failed_keys.leased_at IS 'When a process leased the key to try its messages. Identifies the lease, and a later due_at was set during an attempt.';
COMMENT ON COLUMN failed_keys.leased_until IS 'End of the lease. The process renews it; if the process dies, another one may lease the key from then on.';

-- +goose Down
ALTER TABLE failed_keys DROP COLUMN leased_at, DROP COLUMN leased_until;
