-- +goose Up

CREATE TABLE orders (
    id           text          NOT NULL,
    status       text          NOT NULL,
    version      integer       NOT NULL,
    total_amount numeric(24,6) NOT NULL,
    currency     text          NOT NULL,
    lines        jsonb         NOT NULL,
    created_at   timestamptz   NOT NULL DEFAULT now(),
    updated_at   timestamptz   NOT NULL DEFAULT now(),
    CONSTRAINT orders_pkey PRIMARY KEY (id),
    CONSTRAINT orders_status_known CHECK (status IN ('created', 'inventory_reserved', 'inventory_unavailable', 'paid', 'payment_failed', 'completed', 'expired', 'cancelled')),
    CONSTRAINT orders_version_positive CHECK (version > 0),
    CONSTRAINT orders_total_not_negative CHECK (total_amount >= 0),
    CONSTRAINT orders_currency_code CHECK (currency ~ '^[A-Z]{3}$'),
    CONSTRAINT orders_lines_present CHECK (jsonb_typeof(lines) = 'array' AND jsonb_array_length(lines) > 0)
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.02);
-- Analyze this table as often as other tables: without statistics, plans for many
-- keys read the whole table.

COMMENT ON TABLE orders IS 'The state of each order, derived from its stream order-<id>.';
COMMENT ON COLUMN orders.version IS 'Version of the last event in the stream.';
COMMENT ON COLUMN orders.lines IS 'The ordered products: [{"product_id": ..., "quantity": ...}], one element per product.';

-- Finds orders that were not paid in time. created_at never changes, so updates of an
-- order stay on the same page.
CREATE INDEX orders_created_at ON orders (created_at);

CREATE TABLE expiry_cursor (
    single     boolean     NOT NULL DEFAULT true,
    at         timestamptz NOT NULL,
    order_id   text        NOT NULL,
    ticked_at  timestamptz,
    stalled_at timestamptz,
    CONSTRAINT expiry_cursor_pkey PRIMARY KEY (single),
    CONSTRAINT expiry_cursor_one_row CHECK (single)
);

COMMENT ON TABLE expiry_cursor IS 'Progress of the sweep for orders that were not paid in time, by created_at and id. The row lock lets one replica at a time sweep.';

COMMENT ON COLUMN expiry_cursor.ticked_at IS 'When a sweep last checked whether orders can be paid.';
COMMENT ON COLUMN expiry_cursor.stalled_at IS 'When a sweep last found that orders cannot be paid.';

INSERT INTO expiry_cursor (at, order_id) VALUES (now(), '');

CREATE TABLE payment_stalls (
    began_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL,
    CONSTRAINT payment_stalls_pkey PRIMARY KEY (began_at),
    CONSTRAINT payment_stalls_ordered CHECK (began_at <= ended_at)
);

COMMENT ON TABLE payment_stalls IS 'Times during which orders could not be paid, because something was paused, unavailable or not running. They do not count towards the payment timeout.';

CREATE TABLE stock (
    product_id text   NOT NULL,
    supplied   bigint NOT NULL,
    available  bigint NOT NULL,
    reserved   bigint NOT NULL DEFAULT 0,
    sold       bigint NOT NULL DEFAULT 0,
    CONSTRAINT stock_pkey PRIMARY KEY (product_id),
    CONSTRAINT stock_available_not_negative CHECK (available >= 0),
    CONSTRAINT stock_reserved_not_negative CHECK (reserved >= 0),
    CONSTRAINT stock_sold_not_negative CHECK (sold >= 0),
    CONSTRAINT stock_balanced CHECK (supplied = available + reserved + sold)
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);

COMMENT ON TABLE stock IS 'Stock per product: supplied = available + reserved + sold.';
COMMENT ON COLUMN stock.supplied IS 'Initial stock plus everything restocked.';
COMMENT ON COLUMN stock.reserved IS 'Reserved for orders in state inventory_reserved or paid.';

-- +goose Down
DROP TABLE stock;
DROP TABLE payment_stalls;
DROP TABLE expiry_cursor;
DROP TABLE orders;
