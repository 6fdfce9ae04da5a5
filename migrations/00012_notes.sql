-- +goose NO TRANSACTION
-- +goose Up

-- Operators may leave a note on a group of failed messages with the same cause. The note is
-- the why of the newest action on the group; an empty one removes it.
-- +goose StatementBegin
DO $$
BEGIN
    ALTER TABLE operator_actions
        DROP CONSTRAINT operator_actions_known,
        ADD CONSTRAINT operator_actions_known CHECK (action IN ('paused', 'resumed', 'edited', 'requeued', 'reopened', 'discarded', 'retried', 'skipped', 'repaired', 'erased', 'published', 'noted')) NOT VALID;
    COMMENT ON COLUMN operator_actions.subject IS 'The target: a consumer, a consumer and key, an invariant and id, a user, or a group of failed messages.';
END $$;
-- +goose StatementEnd

SET lock_timeout = 0;
DROP INDEX IF EXISTS operator_actions_notes;
CREATE INDEX CONCURRENTLY operator_actions_notes ON operator_actions (subject, id) WHERE action = 'noted';
SET lock_timeout = '500ms';

-- +goose Down
DROP INDEX operator_actions_notes;
-- +goose StatementBegin
DO $$
BEGIN
    DELETE FROM operator_actions WHERE action = 'noted';
    ALTER TABLE operator_actions
        DROP CONSTRAINT operator_actions_known,
        ADD CONSTRAINT operator_actions_known CHECK (action IN ('paused', 'resumed', 'edited', 'requeued', 'reopened', 'discarded', 'retried', 'skipped', 'repaired', 'erased', 'published')) NOT VALID;
END $$;
-- +goose StatementEnd
