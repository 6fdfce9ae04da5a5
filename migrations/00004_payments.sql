-- +goose Up

CREATE TABLE payments (
    order_id       text          NOT NULL,
    status         text          NOT NULL,
    amount         numeric(24,6) NOT NULL,
    currency       text          NOT NULL,
    transaction_id text,
    decline_reason text,
    recorded_at    timestamptz   NOT NULL DEFAULT now(),
    attempt        integer       NOT NULL DEFAULT 1,
    refund_id      text,
    refunded_at    timestamptz,
    refund_failure text,
    CONSTRAINT payments_pkey PRIMARY KEY (order_id),
    CONSTRAINT payments_status_known CHECK (status IN ('captured', 'declined', 'refunded')),
    CONSTRAINT payments_captured_has_transaction CHECK ((status IN ('captured', 'refunded')) = (transaction_id IS NOT NULL)),
    CONSTRAINT payments_declined_has_reason CHECK ((status = 'declined') = (decline_reason IS NOT NULL)),
    CONSTRAINT payments_refunded_has_refund CHECK ((status = 'refunded') = (refund_id IS NOT NULL AND refunded_at IS NOT NULL)),
    CONSTRAINT payments_attempt_positive CHECK (attempt > 0)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000);

COMMENT ON TABLE payments IS 'The outcome of charging an order, one row per order: a capture replaces a declined charge. A second capture of an order appears only in its stream, with its refund.';
COMMENT ON COLUMN payments.attempt IS 'Together with the order, forms the idempotency key of the charge.';
COMMENT ON COLUMN payments.refund_failure IS 'Why the last refund failed, with its id; NULL if none failed or a later one succeeded.';
COMMENT ON COLUMN payments.refund_id IS 'The gateway''s id for the refund. Refunds are always for the full amount.';

-- The simulated gateway's own record. Like a real provider's record, it is written
-- outside the service's transactions, and nothing references it.
CREATE TABLE gateway_ledger (
    idempotency_key text          NOT NULL,
    order_id        text          NOT NULL,
    attempt         integer       NOT NULL,
    amount          numeric(24,6) NOT NULL,
    currency        text          NOT NULL,
    requests        integer       NOT NULL DEFAULT 1,
    transaction_id  text,
    decline_reason  text,
    settled_at      timestamptz,
    refund_requests integer       NOT NULL DEFAULT 0,
    refund_id       text,
    refunded        numeric(24,6) NOT NULL DEFAULT 0,
    refunded_at     timestamptz,
    pending         boolean       NOT NULL DEFAULT false,
    CONSTRAINT gateway_ledger_pkey PRIMARY KEY (idempotency_key),
    CONSTRAINT gateway_ledger_one_outcome CHECK (num_nonnulls(transaction_id, decline_reason) = num_nonnulls(settled_at)),
    CONSTRAINT gateway_ledger_refund_of_capture CHECK (refund_id IS NULL OR transaction_id IS NOT NULL),
    CONSTRAINT gateway_ledger_refunded_within CHECK (refunded BETWEEN 0 AND amount)
);

COMMENT ON TABLE gateway_ledger IS 'The requests to the simulated payment gateway and their results.';
COMMENT ON COLUMN gateway_ledger.requests IS 'How many times the charge was requested; it is captured once.';
COMMENT ON COLUMN gateway_ledger.pending IS 'Whether a request was accepted before it was captured or declined.';
COMMENT ON COLUMN gateway_ledger.settled_at IS 'When it was captured or declined; NULL if it was only requested.';

-- Not unique, and neither is stripe_intents_intent: of two concurrent requests with
-- the same key, one would fail on this index before ON CONFLICT sees the other.
CREATE INDEX gateway_ledger_transaction ON gateway_ledger (transaction_id) WHERE transaction_id IS NOT NULL;
CREATE INDEX gateway_ledger_captured ON gateway_ledger (settled_at, idempotency_key) WHERE transaction_id IS NOT NULL;
CREATE INDEX gateway_ledger_order ON gateway_ledger (order_id);

-- Maps PaymentIntents to charges; written before money can move.
CREATE TABLE stripe_intents (
    idempotency_key text        NOT NULL,
    order_id        text        NOT NULL,
    attempt         integer     NOT NULL,
    intent_id       text        NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT stripe_intents_pkey PRIMARY KEY (idempotency_key)
);

COMMENT ON TABLE stripe_intents IS 'The only Stripe PaymentIntent that may be confirmed for a charge. Stripe forgets idempotency keys after a day; this table does not.';

CREATE INDEX stripe_intents_intent ON stripe_intents (intent_id);
CREATE INDEX stripe_intents_order ON stripe_intents (order_id);

-- Webhooks received from providers, which may send the same event more than once.
CREATE TABLE provider_events (
    provider    text        NOT NULL,
    event_id    text        NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT provider_events_pkey PRIMARY KEY (provider, event_id)
);

COMMENT ON TABLE provider_events IS 'Webhooks that became messages. Kept for 30 days, longer than any provider resends one.';

CREATE INDEX provider_events_received_at ON provider_events (received_at);

-- +goose Down
DROP TABLE provider_events;
DROP TABLE stripe_intents;
DROP TABLE gateway_ledger;
DROP TABLE payments;
