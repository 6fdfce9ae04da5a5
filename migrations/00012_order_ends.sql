-- +goose Up

-- Finds orders whose time to be paid is over. created_at never changes, so
-- updates of an order stay within its page.
CREATE INDEX orders_created_at ON orders (created_at);

CREATE TABLE expiry_cursor (
    single   boolean     NOT NULL DEFAULT true,
    at       timestamptz NOT NULL,
    order_id text        NOT NULL,
    CONSTRAINT expiry_cursor_pkey PRIMARY KEY (single),
    CONSTRAINT expiry_cursor_one_row CHECK (single)
);

COMMENT ON TABLE expiry_cursor IS 'How far the sweep has looked at orders whose time to be paid is over, by created_at and id. The row lock makes one replica at a time sweep.';

INSERT INTO expiry_cursor (at, order_id)
SELECT coalesce(min(created_at), now()), '' FROM orders WHERE status IN ('created', 'inventory_reserved');

COMMENT ON TABLE payments IS 'What became of charging an order, one row an order: a capture takes the place of a declined charge. A second capture of an order is only in its stream, with its refund.';

-- +goose Down
COMMENT ON TABLE payments IS 'The outcome of charging an order: at most one per order.';
DROP TABLE expiry_cursor;
DROP INDEX orders_created_at;
