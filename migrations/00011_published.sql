-- +goose Up

-- Operators may publish a message to try it out. The payload and the id of the message are
-- in payload and message_id.
ALTER TABLE operator_actions
    DROP CONSTRAINT operator_actions_known,
    ADD CONSTRAINT operator_actions_known CHECK (action IN ('paused', 'resumed', 'edited', 'requeued', 'reopened', 'discarded', 'retried', 'skipped', 'repaired', 'erased', 'published')) NOT VALID;
COMMENT ON COLUMN operator_actions.payload IS 'The payload after an edit, or that was published.';
COMMENT ON COLUMN operator_actions.message_id IS 'The id under which a message was requeued or published.';

-- +goose Down
DELETE FROM operator_actions WHERE action = 'published';
ALTER TABLE operator_actions
    DROP CONSTRAINT operator_actions_known,
    ADD CONSTRAINT operator_actions_known CHECK (action IN ('paused', 'resumed', 'edited', 'requeued', 'reopened', 'discarded', 'retried', 'skipped', 'repaired', 'erased'));
