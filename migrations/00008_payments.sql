-- +goose Up

ALTER TABLE payments
    ADD COLUMN attempt     integer NOT NULL DEFAULT 1,
    ADD COLUMN refund_id   text,
    ADD COLUMN refunded_at timestamptz,
    DROP CONSTRAINT payments_status_known,
    DROP CONSTRAINT payments_captured_has_transaction,
    ADD CONSTRAINT payments_status_known CHECK (status IN ('captured', 'declined', 'refunded')),
    ADD CONSTRAINT payments_captured_has_transaction CHECK ((status IN ('captured', 'refunded')) = (transaction_id IS NOT NULL)),
    ADD CONSTRAINT payments_refunded_has_refund CHECK ((status = 'refunded') = (refund_id IS NOT NULL AND refunded_at IS NOT NULL)),
    ADD CONSTRAINT payments_attempt_positive CHECK (attempt > 0);

COMMENT ON COLUMN payments.attempt IS 'With the order it makes the idempotency key of the charge.';
COMMENT ON COLUMN payments.refund_id IS 'The gateway''s id of the refund. A refund is always of the whole amount.';

-- +goose Down
ALTER TABLE payments
    DROP CONSTRAINT payments_attempt_positive,
    DROP CONSTRAINT payments_refunded_has_refund,
    DROP CONSTRAINT payments_captured_has_transaction,
    DROP CONSTRAINT payments_status_known,
    DROP COLUMN refunded_at,
    DROP COLUMN refund_id,
    DROP COLUMN attempt,
    ADD CONSTRAINT payments_status_known CHECK (status IN ('captured', 'declined')),
    ADD CONSTRAINT payments_captured_has_transaction CHECK ((status = 'captured') = (transaction_id IS NOT NULL));
