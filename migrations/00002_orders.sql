-- +goose Up

-- The event store: what happened to an aggregate, in order.
CREATE TABLE events (
    stream      text        NOT NULL,
    version     integer     NOT NULL,
    position    bigint      GENERATED ALWAYS AS IDENTITY,
    type        text        NOT NULL,
    data        jsonb       NOT NULL,
    message_id  uuid        NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT events_pkey PRIMARY KEY (stream, version),
    CONSTRAINT events_version_positive CHECK (version > 0)
) WITH (autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);

COMMENT ON TABLE events IS 'Streams of events. Versions of a stream are 1..n without gaps.';
COMMENT ON COLUMN events.position IS 'Order of all events. Assigned before commit, so a reader that follows it must wait for older transactions.';
COMMENT ON COLUMN events.message_id IS 'The message whose handling recorded the event.';

-- Positions grow with the heap, which is what BRIN is made for: no cost per insert.
CREATE INDEX events_position ON events USING brin (position) WITH (pages_per_range = 32, autosummarize = on);

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
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);

COMMENT ON TABLE orders IS 'The state of each order: the fold of its stream order-<id>.';
COMMENT ON COLUMN orders.version IS 'Version of the last event in the stream.';
COMMENT ON COLUMN orders.lines IS 'What was ordered: [{"product_id": ..., "quantity": ...}], one element a product.';

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
COMMENT ON COLUMN stock.reserved IS 'Held by orders in state inventory_reserved or paid.';

CREATE TABLE payments (
    order_id       text          NOT NULL,
    status         text          NOT NULL,
    amount         numeric(24,6) NOT NULL,
    currency       text          NOT NULL,
    transaction_id text,
    decline_reason text,
    recorded_at    timestamptz   NOT NULL DEFAULT now(),
    CONSTRAINT payments_pkey PRIMARY KEY (order_id),
    CONSTRAINT payments_status_known CHECK (status IN ('captured', 'declined')),
    CONSTRAINT payments_captured_has_transaction CHECK ((status = 'captured') = (transaction_id IS NOT NULL)),
    CONSTRAINT payments_declined_has_reason CHECK ((status = 'declined') = (decline_reason IS NOT NULL))
);

COMMENT ON TABLE payments IS 'The outcome of charging an order: at most one per order.';

-- +goose Down
DROP TABLE payments;
DROP TABLE stock;
DROP TABLE orders;
DROP TABLE events;
